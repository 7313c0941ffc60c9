"""Nemotron-Labs-Diffusion in float64 numpy, straight from an upstream checkpoint: an oracle.

Forward pass and decode loop are written from the model's description and share no code with the
exporter. Every prediction computes the whole canvas anew, so there is no cache to be wrong about.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

WIDTH, HEADS, KV, K, MLP, VOCAB, LAYERS, BLOCK = 24, 4, 2, 16, 40, 64, 2, 4
MASK, EOS = 60, 11
ROPE: dict[str, Any] = {  # all of it counts within 48 positions
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 12, "beta_fast": 2.0, "beta_slow": 0.02, "mscale": 1.0,
    "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.3,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "nemotron_labs_diffusion", "architectures": ["NemotronLabsDiffusionModel"],
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "head_dim": K, "intermediate_size": MLP, "vocab_size": VOCAB,
    "max_position_embeddings": 48, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "sliding_window": None, "dlm_paradigm": "bidirectional", "block_size": BLOCK,
    "mask_token_id": MASK, "eos_token_id": EOS, "bos_token_id": 1, "rope_parameters": ROPE,
}  # fmt: skip


def write(folder: Path, seed: int = 0, head: float = 4.0, **changes: Any) -> Path:
    """A random checkpoint in the upstream layout; `head` makes its predictions sharp."""
    rng = np.random.default_rng(seed)
    shapes = {"encoder.embed_tokens": (VOCAB, WIDTH), "encoder.norm": (WIDTH,)}
    shapes["diffusion_head"] = (VOCAB, WIDTH)
    for i in range(LAYERS):
        attention, mlp = f"encoder.layers.{i}.self_attn", f"encoder.layers.{i}.mlp"
        shapes |= {
            f"{attention}.q_proj": (HEADS * K, WIDTH),
            f"{attention}.k_proj": (KV * K, WIDTH),
        }
        shapes |= {
            f"{attention}.v_proj": (KV * K, WIDTH),
            f"{attention}.o_proj": (WIDTH, HEADS * K),
        }
        shapes |= {f"{mlp}.gate_proj": (MLP, WIDTH), f"{mlp}.up_proj": (MLP, WIDTH)}
        shapes |= {f"{mlp}.down_proj": (WIDTH, MLP)}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"encoder.layers.{i}.{norm}"] = (WIDTH,)
    tensors = {}
    for name, shape in shapes.items():
        drawn = rng.standard_normal(shape) / shape[-1] ** 0.5
        drawn = 1 + 0.2 * drawn if "norm" in name else drawn
        drawn = head * drawn if name == "diffusion_head" else drawn
        tensors[f"{name}.weight"] = drawn.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(tensors, folder / "model.safetensors")
    return folder


@dataclass(frozen=True)
class Plain:
    """The weights of a checkpoint by upstream name, without `.weight`."""

    weights: dict[str, Floats]

    @classmethod
    def load(cls, folder: Path) -> "Plain":
        found = load_file(folder / "model.safetensors")
        return cls({n.removesuffix(".weight"): w.astype(np.float64) for n, w in found.items()})

    def logits(self, ids: list[int], seen: Bools) -> Floats:
        """Logits (S, V) of one sequence; seen (S, S) says which keys each query sees."""
        x = self.weights["encoder.embed_tokens"][ids]
        for i in range(LAYERS):
            name = f"encoder.layers.{i}"
            x = x + self._attention(
                f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x), seen
            )
            h = self._norm(f"{name}.post_attention_layernorm", x)
            gate, up = (
                self._linear(f"{name}.mlp.gate_proj", h),
                self._linear(f"{name}.mlp.up_proj", h),
            )
            x = x + self._linear(f"{name}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        return self._linear("diffusion_head", self._norm("encoder.norm", x))

    def _norm(self, name: str, x: Floats) -> Floats:
        size = np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG["rms_norm_eps"])
        return np.asarray(x / size * self.weights[name])

    def _linear(self, name: str, x: Floats) -> Floats:
        return np.asarray(x @ self.weights[name].T)

    def _attention(self, name: str, x: Floats, seen: Bools) -> Floats:
        places = np.arange(len(x))
        angles = places[:, None] * frequencies()
        q, k, v = (self._linear(f"{name}.{p}_proj", x).reshape(len(x), -1, K) for p in "qkv")
        grown = 1 + ROPE["llama_4_scaling_beta"] * np.log(
            1 + places // ROPE["original_max_position_embeddings"]
        )
        q, k = turned(q, angles) * grown[:, None, None], turned(k, angles)
        heads = []
        for head in range(HEADS):
            shared = head // (HEADS // KV)
            scores = np.where(seen, q[:, head] @ k[:, shared].T / K**0.5, -np.inf)
            odds = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(odds / odds.sum(-1, keepdims=True) @ v[:, shared])
        return self._linear(f"{name}.o_proj", np.concatenate(heads, -1))


def turned(x: Floats, angles: Floats) -> Floats:
    """Rotary embedding of x (S, heads, K), longer by YaRN's attention factor."""

    def growth(share: float) -> float:
        return float(0.1 * share * np.log(ROPE["factor"]) + 1)

    z = (x[..., : K // 2] + 1j * x[..., K // 2 :]) * np.exp(1j * angles)[:, None]
    z = z * growth(ROPE["mscale"]) / growth(ROPE["mscale_all_dim"])
    return np.concatenate([z.real, z.imag], -1)


def frequencies() -> Floats:
    """One pair of channels after the other, as YaRN has it."""
    found = []
    theta, length = ROPE["rope_theta"], ROPE["original_max_position_embeddings"]
    # the channel that turns n times in the old length: length theta^(-2 c / K) = 2 pi n
    fast, slow = (
        K * np.log(length / (2 * np.pi * ROPE[name])) / (2 * np.log(theta))
        for name in ("beta_fast", "beta_slow")
    )
    first, last = max(int(np.floor(fast)), 0), min(int(np.ceil(slow)), K - 1)
    for channel in range(K // 2):
        plain = theta ** (-2 * channel / K)
        stretched = min(max((channel - first) / (last - first), 0.0), 1.0)
        found.append(plain / ROPE["factor"] * stretched + plain * (1 - stretched))
    return np.asarray(found)


def causal(length: int) -> Bools:
    """Every position sees itself and what stands before it."""
    return np.tril(np.ones((length, length), np.bool_))


def filling(length: int, start: int) -> Bools:
    """The same, but the positions from `start` on see each other."""
    seen = causal(length)
    seen[start:, start:] = True
    return seen


@dataclass
class Decoded:
    """What the loop did. Margins are distances that errors of the logits may not exceed."""

    tokens: list[int]
    commits: list[list[tuple[int, int]]]  # (position, token) call by call
    best: list[dict[int, float]]  # logit of the best token of what was open, call by call
    margin: float = np.inf


def decode(model: Plain, prompt: list[int], blocks: int, steps: int, threshold: float) -> Decoded:
    """Seed a block from causal logits, fill it, go on with the next one; one prompt."""
    done = Decoded(list(prompt), [], [])
    for _ in range(blocks):
        start, stop = len(done.tokens), len(done.tokens) + BLOCK
        rows = suppressed(model.logits(done.tokens, causal(start))[-1:])
        done.tokens += [MASK] * BLOCK
        _commit(done, {start: rows[0]}, [start])
        for step in range(steps):
            masks = [i for i in range(start, stop) if done.tokens[i] == MASK]
            if not masks:
                break
            rows = suppressed(model.logits(done.tokens, filling(stop, start)))
            sure = {i: surety(rows[i]) for i in masks}
            best = max(masks, key=lambda i: sure[i])
            taken = [i for i in masks if sure[i] >= threshold or i == best or step == steps - 1]
            others = [abs(np.log(sure[best] / sure[i])) for i in masks if i != best]
            near = [abs(np.log(sure[i] / threshold)) for i in masks]
            done.margin = min([done.margin, *others, *near])
            _commit(done, {i: rows[i] for i in masks}, taken)
    return done


def _commit(done: Decoded, rows: dict[int, Floats], taken: list[int]) -> None:
    for i, row in rows.items():
        first, second = np.sort(row)[:-3:-1]
        done.margin = min(done.margin, float(first - second)) if i in taken else done.margin
    done.best.append({i: float(row.max()) for i, row in rows.items()})
    done.commits.append([(i, int(rows[i].argmax())) for i in taken])
    for i, token in done.commits[-1]:
        done.tokens[i] = token


def suppressed(logits: Floats) -> Floats:
    logits[:, MASK] = -1e4
    return logits


def surety(row: Floats) -> float:
    """The probability of the best."""
    return float(1 / np.exp(row - row.max()).sum())
