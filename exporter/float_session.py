"""The float model behind the decode loop's `Session`: what calibration and the gate compare with.

Blocks are read from the checkpoint one after the other and let go again, so that memory holds one
block whatever the model's size; a model that is small is kept. The head is read in slices of the
vocabulary and reduced as it passes, in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from exporter.kv_cache import FloatCache, float_cache
from exporter.layer import Layer
from exporter.model import Context, make_context, rms_norm, run_block, shadow_context
from exporter.reductions import SUPPRESSED, Reductions
from exporter.runtime.session import Cache
from exporter.source import Source
from passes.activations.attention import FLOAT

KEEP_BYTES = 64 * 2**20  # a model whose blocks take less than this in fp32 stays in memory
TOKENS_AT_ONCE = 1024  # rows of a forward that are in flight in one block
VOCAB_AT_ONCE = 4096  # head rows that are in memory at a time
ROWS_AT_ONCE = 512  # hidden rows whose logits are in memory at a time
TOP_K = 64  # ids and logits that are returned for sampling

Array = npt.NDArray[np.generic]


class FloatModel:
    """A model computed in fp32 block by block: the float one of a checkpoint.

    `layer` gives a block to run in place of the checkpoint's float one, as simulate.py does. Blocks
    of up to `keep` bytes in fp32 stay in memory; otherwise each is read anew for every forward.
    Caches hold what `kv_bits` bits can of each key and value.
    """

    def __init__(
        self,
        checkpoint: Source,
        device: str = "cpu",
        layer: Callable[[int], Layer] | None = None,
        keep: int = KEEP_BYTES,
        kv_bits: int = FLOAT,
    ) -> None:
        self.kv_bits = kv_bits
        self.checkpoint, self.spec, self.device = checkpoint, checkpoint.spec, device
        self._read = layer or (lambda index: Layer(checkpoint.block(index, device)))
        self._kept: dict[int, Layer] = {}
        self._keep = 4 * checkpoint.parameters <= keep

    def blocks(self) -> Iterator[Layer]:
        """Each block in order."""
        for index in range(self.spec.layers):
            yield self._kept.get(index) or self._load(index)

    def _load(self, index: int) -> Layer:
        layer = self._read(index)
        if self._keep:
            self._kept[index] = layer
        return layer

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, S, D) of ids (B, S)."""
        return self.checkpoint.gather("embed", ids).to(self.device)

    def hidden(
        self,
        ids: torch.Tensor,
        key_mask: torch.Tensor,
        cache: FloatCache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, Q, D) after the last block, before the last norm.

        Of ids (B, Q) that stand at `start`; key_mask (B, Q), or (B, length of the cache). `causal`
        and `shadow` (B, R) as in exporter/runtime/session.py; the states of a shadow come last.
        """
        if shadow is not None:
            ids = torch.cat((ids, torch.full_like(shadow, self.spec.mask_id)), 1)
        hidden = self.embed(ids)
        rows, fed = max(1, TOKENS_AT_ONCE // ids.shape[1]), slice(start, start + ids.shape[1])
        masks = [mask.to(self.device) for mask in key_mask.split(rows)]
        if shadow is None:
            contexts = [make_context(self.spec, mask, fed, causal) for mask in masks]
        else:
            pairs = zip(masks, shadow.to(self.device).split(rows), strict=True)
            contexts = [shadow_context(self.spec, mask, under) for mask, under in pairs]
        for index, layer in enumerate(self.blocks()):
            if cache is not None:
                parts = (slice(first, first + rows) for first in range(0, len(ids), rows))
                contexts = [
                    replace(context, kept=cache.kept(index, part, start))
                    for context, part in zip(contexts, parts, strict=True)
                ]
            run_rows(self, layer, hidden, contexts, rows)
        return hidden

    def logit_slices(self, rows: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """(first id, logits (N, ids)) of rows (N, D), a slice of the vocabulary at a time."""
        norm = self.checkpoint.tensor("final_norm").to(self.device)
        x = rms_norm(rows, norm, self.spec.norm_eps)
        first = 0
        for weight in self.checkpoint.rows("head", VOCAB_AT_ONCE):
            yield first, x @ weight.to(self.device).T
            first += len(weight)

    def logits(self, ids: torch.Tensor, key_mask: torch.Tensor) -> torch.Tensor:
        """Raw logits (B, S, V): neither shifted nor suppressed."""
        hidden = self.hidden(ids, key_mask)
        parts = [part for _, part in self.logit_slices(hidden.flatten(0, 1))]
        return torch.cat(parts, -1).reshape(*ids.shape, -1)


def run_rows(
    model: FloatModel, layer: Layer, hidden: torch.Tensor, contexts: list[Context], rows: int
) -> None:
    """Replace hidden (B, S, D) by what the block makes of it, `rows` sequences at a time."""
    for start, context in zip(range(0, len(hidden), rows), contexts, strict=True):
        hidden[start : start + rows] = run_block(
            model.spec, layer, hidden[start : start + rows], context
        )


class FloatSession:
    """`Session` of the decode loop over the float model; ids from `used_vocab` on never win."""

    def __init__(self, model: FloatModel, used_vocab: int) -> None:
        self.model, self.used_vocab = model, used_vocab

    @torch.no_grad()
    def forward(
        self,
        ids: npt.NDArray[np.int64],
        key_mask: npt.NDArray[np.bool_],
        window: npt.NDArray[np.int64],
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: npt.NDArray[np.int64] | None = None,
    ) -> dict[str, Array]:
        """Reductions (B, W) of the float model; see exporter/runtime/session.py."""
        assert cache is None or isinstance(cache, FloatCache)
        spec, tokens, parts = self.model.spec, torch.from_numpy(ids), 1 if cfg_scale is None else 2
        shape = (len(ids) // parts, len(window))
        under = None if shadow is None else torch.from_numpy(shadow)
        hidden = self.model.hidden(tokens, torch.from_numpy(key_mask), cache, start, causal, under)
        if not len(window):
            return {name: np.empty(shape) for name in wanted}
        at = torch.from_numpy(window) - start
        picked = hidden[:, (at - 1).clamp_min(0) if spec.shift or causal else at]
        halves = picked.reshape(parts, -1, spec.width)
        if under is not None:
            tokens = torch.cat((tokens, tokens.gather(1, under.clamp_min(0))), 1)
        held = tokens[: shape[0], at.clamp_max(tokens.shape[1] - 1)].flatten()
        top_k = TOP_K if wanted & {"l2", "topk_ids", "topk_logits"} else 0
        bias = self._bias(special_bias)
        rows = zip(halves.split(ROWS_AT_ONCE, dim=1), held.split(ROWS_AT_ONCE), strict=True)
        found = [
            self._reduce(some, bias, Reductions(top_k, temperature or 1.0, those), cfg_scale)
            for some, those in rows
        ]
        joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        if under is not None:
            joined["l_unseen"] = joined["l_held"]
        return {n: v.reshape(*shape, *v.shape[1:]) for n, v in joined.items()}

    def new_cache(self, rows: int, length: int) -> FloatCache:
        """See exporter/runtime/session.py."""
        model = self.model
        return float_cache(model.spec, rows, length, model.device, model.kv_bits)

    def _reduce(
        self,
        halves: torch.Tensor,
        bias: torch.Tensor,
        reductions: Reductions,
        cfg_scale: float | None,
    ) -> dict[str, Array]:
        """Reductions (N,) of hidden rows (1, N, D), or (2, N, D) under guidance."""
        for first, part in self.model.logit_slices(halves.flatten(0, 1)):
            logits = part.double()
            if cfg_scale is not None:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + (cfg_scale + 1) * (conditional - unconditional)
            stop = first + logits.shape[1]
            reductions.add(first, logits.cpu() + bias[0, first:stop], bias[1, first:stop])
        return reductions.results()

    def _bias(self, special_bias: npt.NDArray[np.float32]) -> torch.Tensor:
        spec = self.model.spec
        bias = torch.zeros(2, spec.vocab_size, dtype=torch.float64)
        bias[0, spec.mask_id] = bias[0, self.used_vocab :] = SUPPRESSED
        for place, token in enumerate(spec.special_ids):
            bias[:, token] += torch.from_numpy(special_bias[:, place]).double()
        return bias
