"""The shadow of a block: its tokens predicted once more, each without seeing itself.

WINO (arXiv 2507.18578). Behind the canvas stand as many masks as the block has tokens, at the same
positions. They see the canvas, but for the very token that they stand for, and each other; nothing
of the canvas sees them. So the rows of the canvas predict its masks as always, and the rows of the
shadow tell how likely the tokens that stand are.
"""

from __future__ import annotations

import numpy as np

from .session import Bools, Ints, Reductions


def shadow_of(members: Bools) -> Ints:
    """Positions [B, R] of the members [B, L] of a block from the left, -1 behind the last."""
    count = members.sum(1)
    order = np.argsort(~members, axis=1, kind="stable")[:, : int(count.max(initial=0))]
    return np.where(np.arange(order.shape[1]) < count[:, None], order, -1)


def rows_for(members: Bools, masked: Bools, window: Ints) -> Ints:
    """Which row of canvas and shadow predicts the positions `window`: [B, W].

    Masks their own; tokens of the block that of the shadow, counted from the canvas length L on;
    other tokens their own, which sees them.
    """
    in_shadow = (members & ~masked)[:, window]
    place = (np.cumsum(members, 1) - 1)[:, window]
    return np.where(in_shadow, members.shape[1] + place, window)


def at_rows(found: Reductions, asked: Ints, rows: Ints) -> Reductions:
    """Reductions [B, W] at `rows` [B, W], from those at `asked` [N], ascending, for all."""
    place = np.searchsorted(asked, rows)
    here = {n: a[np.arange(len(rows))[:, None], place] for n, a in found.items()}
    return {**here, "l_held": here["l_unseen"]} if "l_unseen" in here else here
