"""LLaDA and Dream in float64 numpy, straight from upstream checkpoints: an oracle for tests.

It shares no code with the exporter. `NumpySession` gives its reductions to the decode loop, with
the full distribution in hand, so K is the vocabulary.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from exporter.runtime.bundle import ModelFacts
from exporter.runtime.session import Bools, Cache, Floats, Ints, Reductions

LLADA = {
    "embed": "model.transformer.wte",
    "final_norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
    "block": "model.transformer.blocks.{i}.",
    "attn_norm": "attn_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out",
    "mlp_norm": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}
DREAM = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "block": "model.layers.{i}.",
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass
class TokenCache:
    """What a fake remembers: the token that was fed last at each position, [rows, length]."""

    tokens: Ints

    @property
    def rows(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return int(self.tokens.shape[1])

    def feed(self, ids: Ints, start: int) -> Ints:
        """All tokens, once `ids` [rows, Q] stand at `start`."""
        self.tokens[:, start : start + ids.shape[1]] = ids
        return self.tokens.copy()


@dataclass
class KeyCache:
    """Keys behind their positions and values, by block: [rows, H, length, K]."""

    rows: int
    length: int
    blocks: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)

    def feed(self, block: str, k: Floats, v: Floats, start: int) -> tuple[Floats, Floats]:
        """All keys and values of a block, once k and v [rows, H, Q, K] stand at `start`."""
        shape = (*k.shape[:2], self.length, k.shape[3])
        keys, values = self.blocks.setdefault(block, (np.zeros(shape), np.zeros(shape)))
        keys[:, :, start : start + k.shape[2]] = k
        values[:, :, start : start + k.shape[2]] = v
        return keys, values


@dataclass(frozen=True)
class NumpyModel:
    """A checkpoint folder with upstream names."""

    names: dict[str, str]
    weights: dict[str, Floats]
    layers: int
    heads: int
    theta: float
    eps: float
    facts: ModelFacts

    def logits(
        self, ids: Ints, key_mask: Bools, cache: KeyCache | None = None, start: int = 0
    ) -> Floats:
        """Raw logits [B, Q, V] of ids [B, Q] at `start`; at padded positions they mean nothing."""
        position = np.arange(key_mask.shape[1])[None]
        if self.facts.shift:  # Dream counts positions without padding
            position = np.maximum(np.cumsum(key_mask, 1) - 1, 0)
        position = position[:, start : start + ids.shape[1]]
        return self._run(ids, position, key_mask[:, None], cache or KeyCache(*ids.shape), start)

    def shadow_logits(self, ids: Ints, key_mask: Bools, shadow: Ints) -> Floats:
        """Raw logits [B, R, V] of the shadow [B, R] of a canvas [B, S], entry by entry."""
        rows, length = ids.shape
        sees = np.zeros((rows, length + shadow.shape[1], length + shadow.shape[1]), bool)
        for row, query, key in np.ndindex(*sees.shape):
            if key < length:
                stands_for = -1 if query < length else shadow[row, query - length]
                sees[row, query, key] = key_mask[row, key] and stands_for != key
            else:
                sees[row, query, key] = query >= length and shadow[row, key - length] >= 0
        position = np.concatenate([np.tile(np.arange(length), (rows, 1)), shadow], 1)
        fed = np.concatenate([ids, np.full_like(shadow, self.facts.mask_id)], 1)
        return self._run(fed, position, sees, KeyCache(*fed.shape), 0)[:, length:]

    def _run(
        self, ids: Ints, position: Ints, allowed: Bools, cache: KeyCache, start: int
    ) -> Floats:
        x = self.weights[self.names["embed"] + ".weight"][ids]
        for i in range(self.layers):
            block = self.names["block"].format(i=i)
            h = self._norm(block, "attn_norm", x)
            x = x + self._attend(block, h, position, allowed, cache, start)
            h = self._norm(block, "mlp_norm", x)
            gate = self._linear(block, "gate", h)
            h = gate / (1 + np.exp(-gate)) * self._linear(block, "up", h)
            x = x + self._linear(block, "down", h)
        return self._linear("", "head", self._norm("", "final_norm", x))

    def _norm(self, block: str, name: str, x: Floats) -> Floats:
        weight = self.weights[f"{block}{self.names[name]}.weight"]
        return np.asarray(weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps))

    def _linear(self, block: str, name: str, x: Floats) -> Floats:
        name = block + self.names[name]
        bias = self.weights.get(f"{name}.bias", np.zeros(()))
        return np.asarray(x @ self.weights[f"{name}.weight"].T + bias)

    def _attend(
        self, block: str, x: Floats, position: Ints, allowed: Bools, cache: KeyCache, start: int
    ) -> Floats:
        width = x.shape[-1] // self.heads

        def heads(name: str) -> Floats:  # [B, H, S, K], key heads repeated
            y = self._linear(block, name, x)
            y = y.reshape(*y.shape[:2], -1, width).swapaxes(1, 2)
            return np.asarray(np.repeat(y, self.heads // y.shape[1], axis=1))

        angle = position[..., None] * self.theta ** (-np.arange(0, width, 2) / width)
        angle = np.concatenate([angle, angle], -1)[:, None]

        def turn(y: Floats) -> Floats:
            half = np.concatenate([-y[..., width // 2 :], y[..., : width // 2]], -1)
            return np.asarray(y * np.cos(angle) + half * np.sin(angle))

        k, v = cache.feed(block, turn(heads("k")), heads("v"), start)
        scores = turn(heads("q")) @ k.swapaxes(2, 3) / np.sqrt(width)
        scores = np.where(allowed[:, None], scores, -1e30)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (p / p.sum(-1, keepdims=True)) @ v
        return self._linear(block, "o", mixed.swapaxes(1, 2).reshape(x.shape))


def load_numpy_model(folder: Path, eot_id: int | None = None) -> NumpyModel:
    """Read config.json and model.safetensors of a LLaDA or Dream checkpoint."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    shift = config["model_type"] == "Dream"
    weights = {n: w.astype(np.float64) for n, w in load_file(folder / "model.safetensors").items()}
    eos = config["eos_token_id"]
    facts = ModelFacts(
        family="dream" if shift else "llada",
        name=folder.name,
        attention="full",
        shift=shift,
        corruption="absorbing",
        block_seed="mask",
        vocab_size=config["vocab_size"],
        max_length=config["max_position_embeddings" if shift else "max_sequence_length"],
        mask_id=config["mask_token_id"],
        eos_id=eos,
        eot_id=eot_id,
        pad_id=config["pad_token_id"],
        special_ids=tuple(i for i in (eos, eot_id) if i is not None),
    )
    return NumpyModel(
        names=DREAM if shift else LLADA,
        weights=weights,
        layers=config["num_hidden_layers" if shift else "n_layers"],
        heads=config["num_attention_heads" if shift else "n_heads"],
        theta=config["rope_theta"],
        eps=config["rms_norm_eps"],
        facts=facts,
    )


class NumpySession:
    """`Session` over a `NumpyModel`; counts its calls and rows."""

    def __init__(self, model: NumpyModel) -> None:
        self.model, self.facts = model, model.facts
        self.calls = self.rows = 0

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        """See exporter/runtime/session.py."""
        self.calls, self.rows = self.calls + 1, self.rows + len(ids)
        assert cache is None or isinstance(cache, KeyCache)
        logits = self.model.logits(ids, key_mask, cache, start)
        if shadow is not None:
            under = self.model.shadow_logits(ids, key_mask, shadow)
            logits = np.concatenate([logits, under], 1)
            ids = np.concatenate([ids, np.take_along_axis(ids, np.maximum(shadow, 0), 1)], 1)
        at = np.maximum(window - 1, 0) if self.facts.shift else window
        logits = logits[:, at - start]
        if cfg_scale is not None:
            conditional, unconditional = np.split(logits, 2)
            logits = unconditional + (cfg_scale + 1) * (conditional - unconditional)
        logits[..., self.facts.mask_id] = -1e4
        logits[..., list(self.facts.special_ids)] += special_bias[0]
        bias = np.zeros(logits.shape[-1])
        bias[list(self.facts.special_ids)] = special_bias[1]
        held = ids[: len(logits), np.minimum(window - start, ids.shape[1] - 1)]
        found = reduce(logits, bias, temperature or 1.0, held)
        return found if shadow is None else {**found, "l_unseen": found["l_held"]}

    def new_cache(self, rows: int, length: int) -> KeyCache:
        return KeyCache(rows, length)


def reduce(
    logits: Floats, bias: Floats, temperature: float, held: Ints | None = None
) -> Reductions:
    """All reductions of logits [..., V]; `bias` [V] counts in rest, rest_t and entropy only.

    `held` [...]: the ids that l_held is about.
    """
    order = np.argsort(-logits, axis=-1, kind="stable")
    best = np.take_along_axis(logits, order, -1)
    gap = logits - best[..., :1] + bias
    rest, rest_t = np.exp(gap), np.exp(gap / temperature)
    for odds in (rest, rest_t):
        np.put_along_axis(odds, order[..., :1], 0.0, -1)
    p = np.exp(gap - gap.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    extra = {}
    if held is not None:
        extra["l_held"] = np.take_along_axis(logits, held[..., None], -1)[..., 0]
    return {
        **extra,
        "id1": order[..., 0],
        "l1": best[..., 0],
        "l2": best[..., 1],
        "rest": rest.sum(-1),
        "rest_t": rest_t.sum(-1),
        "entropy": -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1),
        "topk_ids": order,
        "topk_logits": best,
    }
