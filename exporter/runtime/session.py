"""What the loop needs from a model: a method that turns token ids into reductions, and caches."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]
Reductions = dict[str, Array]
"""Reductions of the logits l (mask id and padding vocabulary suppressed), by name.

`id1` int64 [B, W]: arg-max; `l1`: its logit; `l2`: the second logit; `rest`: sum over j != id1 of
exp(l_j - l1), the odds against id1, so p1 = 1 / (1 + rest); `rest_t`: sum over j != id1 of
exp((l_j - l1) / temperature); `entropy`: nats; `topk_ids`, `topk_logits` [B, W, K]: descending;
`l_held`: the logit of the token that stands at the position, whose probability is
exp(l_held - l1) / (1 + rest); `l_unseen`: the same from a shadow; `logits` [B, Q, V]: raw, in debug
builds. Floats are float32 or float64.
"""


class Cache(Protocol):
    """Keys and values of all blocks at the positions of a canvas, as `Session.new_cache` made it.

    Only the session that made a cache can read it.
    """

    @property
    def rows(self) -> int:
        """Sequences; under guidance conditional and unconditional ones."""
        ...

    @property
    def length(self) -> int:
        """Positions that it can hold."""
        ...


class Session(Protocol):
    """A model behind a forward call: ONNX Runtime, or a float model in torch or numpy."""

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
        """Predict the tokens at the positions `window` [W] of the canvas, from `ids` [B, Q].

        Without a cache, `ids` are the canvas, or as much of it as is to be seen. With a cache they
        stand at positions start ... start + Q - 1: their keys and values replace what the cache has
        there, and their queries see all of it that `key_mask` shows. `key_mask` [B, Q], or
        [B, length of the cache]: False hides a position, be it padding or behind what is to be
        seen. In block-causal models a position sees its own block and earlier ones; blocks are
        counted from the first position that is shown. In models that commit causally the positions
        of the last block that is shown see each other, and all before it only what stands before
        them; with `causal` that goes for all, and the row at p - 1 predicts p.

        `window` lies within what is fed; with a logits shift, or `causal`, one to the right of it,
        for the row at p - 1 predicts p (position 0 keeps its own row). It may be empty: then the
        cache is filled and that is all.

        `shadow` [B, R], with full attention, no shift and no cache: masks behind the canvas at the
        positions that it names (-1: nowhere), which see the canvas, but for the token at their
        position, and each other, and are seen by nobody else. Then `window` counts them from Q on,
        and `l_unseen` is the logit there of the token at their position.

        `special_bias` [2, E]: row 0 is added to the logits of the model's special ids, row 1 on top
        of it inside `rest`, `rest_t` and `entropy` only. With `cfg_scale` s, `ids`, `key_mask` and
        the cache hold 2B rows, the conditional ones c first, and l = u + (s + 1) (c - u). Returns
        at least the reductions named in `wanted`, with B rows.
        """
        ...

    def new_cache(self, rows: int, length: int) -> Cache:
        """An empty cache for `rows` sequences of at most `length` positions."""
        ...
