"""Canvases that grow: the length of an answer is found while it is decoded.

DAEDAL (arXiv 2508.00819), with the numbers and the order of its published loop. The canvas has
room for `gen_length` tokens. A row shows a part of it, `key_mask` says which; what lies behind
holds end-of-text tokens and is neither seen nor filled. First the answer is all masks, and grows
until the model is sure enough of an end. Then it is filled block by block, and where a mask is very
unsure while the end is not certain, more masks are inserted, as many as there is room for: upstream
inserts all and drops what stands at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .candidates import Candidates
from .rules import passing
from .session import Bools, Floats, Ints, Reductions
from .task import Task

if TYPE_CHECKING:
    from .plan import Call

CERTAIN = 0.9  # confidence in the end that needs no more room

Growth = tuple[int, int, int]  # (row, position, count): so many masks inserted before the position


def ends(task: Task) -> Ints:
    """Where each row ends [B]: behind its last position that is shown."""
    return np.asarray(task.key_mask.shape[1] - task.key_mask[:, ::-1].argmax(1), np.int64)


def answer(task: Task) -> Bools:
    """The part of the generated region that is shown [B, L]."""
    return task.key_mask & (np.arange(task.key_mask.shape[1]) >= task.prompt_length)


def shorten(task: Task) -> None:
    """Show no more than `initial_length` of the generated region, which must be masks."""
    if (task.canvas[:, task.prompt_length :] != task.model.mask_id).any():
        raise ValueError("tokens stand in the generated region, which is to grow")
    behind = task.prompt_length + task.settings.initial_length
    assert task.model.eos_id is not None
    task.canvas[:, behind:] = task.model.eos_id
    task.key_mask[:, behind:] = False


def append_end(task: Task) -> None:
    """Show end-of-text tokens behind each row, half as many as are looked at, while there is room.

    Upstream does so between its two stages.
    """
    last = np.minimum(ends(task) + task.settings.eos_window // 2, task.canvas.shape[1])
    columns = np.arange(task.canvas.shape[1])
    task.key_mask[(columns >= ends(task)[:, None]) & (columns < last[:, None])] = True


def grow(
    task: Task, call: Call, window: Ints, found: Reductions, offered: Candidates
) -> list[Growth]:
    """Make room in the rows of `call` that need it, and say where.

    While nothing is open, at the end of rows whose end is less likely than `eos_threshold`; after
    that at the most unsure mask that is still one, if p < low_threshold and the end is not certain.
    """
    if call.watched is None:
        return []
    sure = end_confidence(task, call.watched, window, found)
    before, rows = ends(task), call.watched.any(1) & (ends(task) < task.canvas.shape[1])
    grown: list[Growth] = []
    if not call.open.any():
        for row in np.flatnonzero(rows & (sure < task.settings.eos_threshold)):
            grown.append(_insert(task, int(row), int(before[row]), task.settings.growth))
        return grown
    for row in np.flatnonzero(rows & (sure < CERTAIN)):
        position = _most_unsure(task, int(row), window, offered)
        if position is not None:
            grown.append(_insert(task, int(row), position, task.settings.growth - 1))
    return [growth for growth in grown if growth[2]]


def end_confidence(task: Task, watched: Bools, window: Ints, found: Reductions) -> Floats:
    """How sure a model is that each row [B] ends: p of the end-of-text token where it is the best.

    Summed over the last `eos_window` such positions of the answer and divided by that number, so
    that fewer of them are less sure.
    """
    is_end = watched[:, window] & (found["id1"] == task.model.eos_id)
    counted = is_end & (np.cumsum(is_end[:, ::-1], 1)[:, ::-1] <= task.settings.eos_window)
    with np.errstate(invalid="ignore"):
        p = np.nan_to_num(1 / (1 + found["rest"].astype(np.float64)), nan=0.0)
    return np.asarray(np.where(counted, p, 0.0).sum(1) / task.settings.eos_window)


def _most_unsure(task: Task, row: int, window: Ints, offered: Candidates) -> int | None:
    """The position of the most doubted candidate that was not taken, the lowest on ties."""
    positions = window[offered.columns]
    left = (offered.rows == row) & task.masked()[offered.rows, positions]
    left &= ~passing(offered.doubt, task.settings.limit("low_threshold"), strict=False)
    if not left.any():
        return None
    return int(positions[np.where(left, offered.doubt, -1.0).argmax()])


def _insert(task: Task, row: int, position: int, count: int) -> Growth:
    """Insert up to `count` masks, as many as there is room for."""
    end = int(ends(task)[row])
    count = min(count, task.canvas.shape[1] - end)
    task.canvas[row, position + count : end + count] = task.canvas[row, position:end].copy()
    task.canvas[row, position : position + count] = task.model.mask_id
    task.key_mask[row, end : end + count] = True
    return row, position, count
