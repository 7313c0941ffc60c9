"""What the loop needs from a model: one method that turns token ids into reductions."""

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
`logits` [B, S, V]: raw, in debug builds. Floats are float32 or float64.
"""


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
    ) -> Reductions:
        """Predict the tokens at the positions `window` [W] of `ids` [B, S].

        `key_mask` [B, S]: False hides padding. `special_bias` [2, E]: row 0 is added to the logits
        of the model's special ids, row 1 on top of it inside `rest`, `rest_t` and `entropy` only.
        With `cfg_scale` s, `ids` and `key_mask` hold 2B rows, the conditional ones c first, and
        l = u + (s + 1) (c - u). Returns at least the reductions named in `wanted`, with B rows.
        """
        ...
