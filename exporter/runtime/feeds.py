"""The arguments of a forward as the inputs of a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from .session import Array, Bools, Ints, Reductions

STRIDE = 8  # windows are lengthened to a multiple of it, so that few shapes occur
WHOLE = ("logits",)  # outputs of all positions that are fed; others have those of the window


def lengthened(window: Ints, most: int | None = None) -> Ints:
    """The window with its last position repeated up to a multiple of STRIDE, or to `most`."""
    length = -(-len(window) // STRIDE) * STRIDE
    length = length if most is None else min(length, most)
    return np.pad(window, (0, length - len(window)), mode="edge")


def shortened(found: Mapping[str, Array], length: int) -> Reductions:
    """Reductions of the first `length` positions of a window."""
    return {n: array if n in WHOLE else array[:, :length] for n, array in found.items()}


def feeds_of(
    names: Collection[str],
    capacity: int | None,
    ids: Ints,
    key_mask: Bools,
    window: Ints,
    special_bias: Array,
    cfg_scale: float | None,
    temperature: float | None,
    start: int,
    causal: bool,
    shadow: Ints | None,
) -> dict[str, Array]:
    """Contiguous arrays for those inputs that are among `names`; see `session.Session`.

    `capacity`: positions of the buffers of keys and values, where these stand in the graph; nobody
    sees what lies behind the canvas. Without a window the position `start` is predicted, which the
    caller drops: a tensor of no rows at all is more than runtimes can do.
    """
    if capacity is not None:
        key_mask = np.pad(key_mask, ((0, 0), (0, capacity - key_mask.shape[1])))
    feeds: dict[str, Array] = {
        "input_ids": ids,
        "start": np.asarray([start], np.int64),
        "causal": np.asarray([causal], np.bool_),
        "key_mask": key_mask,
        "shadow": np.empty((len(ids), 0), np.int64) if shadow is None else shadow,
        "window": window.astype(np.int64) if len(window) else np.asarray([start], np.int64),
        "special_bias": special_bias,
        "cfg_scale": np.asarray([cfg_scale or 0.0], np.float32),
        "temperature": np.asarray([temperature or 1.0], np.float32),
    }
    return {name: np.ascontiguousarray(feeds[name]) for name in feeds if name in names}
