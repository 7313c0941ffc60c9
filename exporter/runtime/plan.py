"""The calls of the upstream loops in their order: which positions are open, how many to commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .schedule import Block, Floats32, block_steps, blocks, dream_quota, dream_shares, even_split
from .session import Bools, Ints
from .task import Task

Generators = list[np.random.Generator]


@dataclass(frozen=True)
class Call:
    """One call of the upstream loop. Nothing open: it cannot change the canvas."""

    block: int
    open: Bools  # [B, L] masks that it may replace
    quota: Ints | None  # [B] how many it replaces; None = the rule decides


def calls(task: Task, rngs: Generators) -> Iterator[Call]:
    """The calls for a task; reads the canvas as it is by then."""
    for number, block in enumerate(blocks(task.blank, task.prompt_length, task.settings)):
        for open_, quota in _block_calls(task, block, rngs):
            yield Call(number, open_, quota)


def _block_calls(task: Task, block: Block, rngs: Generators) -> Iterator[tuple[Bools, Ints | None]]:
    if task.settings.sampler == "origin":
        return _lotteries(task, block, rngs)
    if task.settings.by_canvas:
        return _dream_calls(task, block)
    return _quota_calls(task, block) if task.settings.by_quota else _until_full(task, block)


def _open(task: Task, block: Block) -> Bools:
    return block.members & task.masked()


def _quota_calls(task: Task, block: Block) -> Iterator[tuple[Bools, Ints]]:
    """LLaDA: the masks that the block starts with, split evenly over its calls."""
    blanks = task.blank[:, : task.prompt_length].sum(1)
    start = (block.members & task.blank).sum(1)
    for quota in even_split(start, block_steps(block, blanks, task.settings)).T:
        yield _open(task, block) & (quota > 0)[:, None], quota


def _until_full(task: Task, block: Block) -> Iterator[tuple[Bools, None]]:
    """Fast-dLLM: the rule commits at least one token of each row until the block has no mask."""
    while (open_ := _open(task, block)).any():
        yield open_, None


def _dream_calls(task: Task, block: Block) -> Iterator[tuple[Bools, Ints]]:
    """Dream: in each call a share of the masks that are left, all in the last."""
    for share in _shares(task, block).T:
        open_ = _open(task, block)
        quota = dream_quota(open_.sum(1), share)
        yield open_ & (quota > 0)[:, None], quota


def _lotteries(task: Task, block: Block, rngs: Generators) -> Iterator[tuple[Bools, None]]:
    """Dream's `origin`: each mask is replaced with a probability equal to the share of the call."""
    for share in _shares(task, block).T:
        open_ = _open(task, block)
        for row, rng in enumerate(rngs):
            open_[row, open_[row]] = rng.random(int(open_[row].sum())) < share[row]
        yield open_, None


def _shares(task: Task, block: Block) -> Floats32:
    steps = np.maximum(block.size, 1)
    if task.settings.steps is not None:
        steps = np.full_like(steps, task.settings.steps)
    return dream_shares(steps, task.settings.eps)
