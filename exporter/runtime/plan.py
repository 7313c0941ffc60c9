"""The calls of the upstream loops in their order: which positions are open, how many to commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .ending import close_finished
from .growth import answer, append_end, ends
from .schedule import (
    Block,
    Floats32,
    block_steps,
    dream_quota,
    dream_shares,
    even_block_steps,
    even_split,
)
from .session import Bools, Ints
from .task import Task

Generators = list[np.random.Generator]

FIRST_TAKEN = 30  # what WINO takes the call before the first of a block to have committed


@dataclass(frozen=True)
class Call:
    """One call of the upstream loop. Nothing open: it cannot change the canvas."""

    open: Bools  # [B, L] masks that it may replace
    quota: Ints | None = None  # [B] how many it replaces; None = the rule decides
    edits: Bools | None = None  # [B, L] tokens that it may replace
    most_edits: Ints | None = None  # [B] how many of these at most; None = the rule decides
    whole: bool = False  # it replaces all that is open
    seeds: bool = False  # it predicts first tokens of a block from the blocks before it alone
    block: int = 0
    members: Bools | None = None  # [B, L] of the block
    watched: Bools | None = None  # [B, L] what a rule that makes room looks at, masks or not

    @property
    def rows(self) -> Bools:
        """[B] rows that it may change."""
        places = self.places if self.watched is None else self.places | self.watched
        return np.asarray(places.any(1))

    @property
    def places(self) -> Bools:
        """[B, L] what it may replace."""
        return self.open if self.edits is None else self.open | self.edits


Schedule = Callable[[Task, Block, Generators], Iterator[Call]]


def calls(task: Task, rngs: Generators) -> Iterator[Call]:
    """The calls for a task; reads the canvas as it is by then."""
    blocks, schedule = task.blocks(), SCHEDULES[task.settings.rule.schedule]
    stores = task.causal and task.settings.rule.stores
    left = task.settings.max_forwards
    if stores and blocks and _prompt_blocks(task, blocks[0]).any():
        yield Call(np.zeros_like(task.blank))  # upstream stores the blocks of the prompt
    for number, block in enumerate(blocks):
        useful = 0
        found = schedule(task, block, rngs)
        if task.model.block_seed == "token":
            found = _seeded(task, block, found)
        if left is not None:
            found = _within(max(1, left // (len(blocks) - number)), found, task, block)
        for call in found:
            useful += bool(call.rows.any())
            yield replace(call, block=number, members=block.members)
        left = None if left is None else left - useful
        refreshed = task.settings.cache in ("prefix", "dual") and useful == 1
        if stores or (refreshed and not _open(task, block).any()):
            # upstream stores the block, or looks at it again after the call that refreshed all
            yield Call(np.zeros_like(task.blank), block=number, members=block.members)
        if task.settings.early_stop and _ended(task):
            return


def _ended(task: Task) -> bool:
    return bool(close_finished(task.canvas, task.prompt_length, task.model).all())


def _prompt_blocks(task: Task, block: Block) -> Bools:
    """Real tokens [B, L] before the first block that is filled."""
    start = np.where(block.members.any(1), block.members.argmax(1), 0)
    return task.key_mask & (np.arange(task.canvas.shape[1]) < start[:, None])


def _seeded(task: Task, block: Block, found: Iterator[Call]) -> Iterator[Call]:
    """Fast-dLLM v2, Nemotron: what stands before a block gives its first token, as in a causal
    model; then come the calls that fill the block. That call stores the blocks before, too.
    """
    first = block.members & (np.cumsum(block.members, axis=1) == 1)
    first &= np.cumsum(task.key_mask, axis=1) > 1  # nothing stands before the first token
    if (open_ := first & task.masked()).any():
        yield Call(open_, whole=True, seeds=True)
    yield from found


def _within(most: int, found: Iterator[Call], task: Task, block: Block) -> Iterator[Call]:
    """The calls of a block until `most` could change something; the last of these fills it."""
    useful = 0
    for call in found:
        useful += bool(call.rows.any() and not call.seeds)
        if useful == most:
            yield Call(_open(task, block), whole=True)
            return
        yield call


def _open(task: Task, block: Block) -> Bools:
    return block.members & task.masked()


def _even(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """LLaDA: the masks that the block starts with, split evenly over its calls."""
    blanks = task.blank[:, : task.prompt_length].sum(1)
    start = _open(task, block).sum(1)  # without its first token, if that was seeded
    for quota in even_split(start, block_steps(block, blanks, task.settings)).T:
        yield Call(_open(task, block) & (quota > 0)[:, None], quota)


def _until_full(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """Fast-dLLM: the rule commits at least one token of each row until the block has no mask."""
    while (open_ := _open(task, block)).any():
        yield Call(open_)


def _at_most(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """LFM2.5: no more tokens a call than an even split would have, until the block has no mask."""
    blanks = task.blank[:, : task.prompt_length].sum(1)
    quota = -(-block.size // block_steps(block, blanks, task.settings))
    while (open_ := _open(task, block)).any():
        yield Call(open_, quota)


def _in_steps(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """Nemotron: the same, in `steps` calls at most; the last of them takes all."""
    most = task.settings.steps or task.block_length
    return _within(most, _until_full(task, block, rngs), task, block)


def _block_quota(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """SDAR, LLaDA2.0: the length of a block, split evenly over `steps`, until it has no mask."""
    length = np.asarray([task.block_length])
    steps = np.asarray([even_block_steps(task.block_length, task.settings)])
    for quota in even_split(length, steps)[0]:
        if not (open_ := _open(task, block)).any():
            return
        yield Call(open_, np.full(len(open_), quota))


def _editing(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """LLaDA2.1: tokens of the block may be replaced while it is filled, and in calls after that.

    A row is done after a call without masks that edits nothing, or after `max_post_steps` of them.
    """
    settings = task.settings
    quota = np.full(len(task.canvas), settings.num_to_transfer)
    post = np.zeros(len(task.canvas), np.int64)
    done = ~_open(task, block).any(1)  # given, or behind the end of an answer
    while True:
        open_ = _open(task, block)
        full = ~open_.any(1)
        post += full
        done |= full & (post > settings.max_post_steps)
        if done.all():
            return
        before = task.canvas.copy()
        edits = block.members & task.blank & ~task.masked() & ~done[:, None]
        yield Call(open_ & ~done[:, None], quota, edits)
        done |= full & (task.canvas == before).all(1)


def _shares(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """Dream: in each call a share of the masks that are left, all in the last."""
    for share in _dream_shares(task, block).T:
        open_ = _open(task, block)
        quota = dream_quota(open_.sum(1), share)
        yield Call(open_ & (quota > 0)[:, None], quota)


def _lotteries(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """Dream's `origin`: each mask is replaced with a probability equal to the share of the call."""
    for share in _dream_shares(task, block).T:
        open_ = _open(task, block)
        for row, rng in enumerate(rngs):
            open_[row, open_[row]] = rng.random(int(open_[row].sum())) < share[row]
        yield Call(open_)


def _remasking(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """P2: call i of n leaves a share (i + 1) / n of the answer standing, masked or not before."""
    total = task.blank.sum(1)
    steps = np.full_like(total, task.settings.steps) if task.settings.steps else total
    for i in range(int(steps.max(initial=0))):
        masks = np.maximum(total * (steps - i - 1) // np.maximum(steps, 1), 0)
        active = (i < steps)[:, None]
        yield Call(task.masked() & active, total - masks, task.blank & ~task.masked() & active)


def _dream_shares(task: Task, block: Block) -> Floats32:
    steps = np.maximum(block.size, 1)
    if task.settings.steps is not None:
        steps = np.full_like(steps, task.settings.steps)
    return dream_shares(steps, task.settings.eps)


def _sub_blocks(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """Fast-dLLM v2: parts of a block from left to right, each until it has no mask."""
    place = np.cumsum(block.members, axis=1) - 1
    size = task.settings.sub_block_length
    for start in range(0, task.block_length, size):
        inside = (place >= start) & (place < start + size)
        while (open_ := _open(task, block) & inside).any():
            yield Call(open_)


def _growing(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """DAEDAL: the length of the answer first, then block by block while the rows may grow."""
    if not block.members[:, task.prompt_length :].any():  # blanks of the prompt stay single tokens
        yield from _until_full(task, block, rngs)
        return
    if block.members[:, task.prompt_length].any():
        yield from _lengthening(task)
        append_end(task)
    while (open_ := _open(task, block)).any():
        rows = np.asarray(open_.any(1))
        yield Call(open_, watched=answer(task) & rows[:, None])


def _lengthening(task: Task) -> Iterator[Call]:
    """Calls that only make room, until no row needs more or has more."""
    rows: Bools = ends(task) < task.canvas.shape[1]
    while rows.any():
        before = ends(task)
        yield Call(np.zeros_like(task.blank), watched=answer(task) & rows[:, None])
        rows &= (ends(task) > before) & (ends(task) < task.canvas.shape[1])


def _revoking(task: Task, block: Block, rngs: Generators) -> Iterator[Call]:
    """WINO: a share of the masks at most; fewer tokens are put back than the call before took.

    So every two calls leave fewer masks, and a block ends.
    """
    taken = np.full(len(task.canvas), FIRST_TAKEN)
    while (open_ := _open(task, block)).any():
        active = np.asarray(open_.any(1))
        quota = np.clip((0.7 * open_.sum(1)).astype(np.int64), 5, 20)
        tokens = block.members & task.blank & ~open_ & active[:, None]
        yield Call(open_, quota, tokens, taken - 1)
        taken = np.where(active, (open_ & ~task.masked()).sum(1), taken)


SCHEDULES: Mapping[str, Schedule] = {
    "even": _even,
    "at-most": _at_most,
    "until-full": _until_full,
    "growing": _growing,
    "revoking": _revoking,
    "in-steps": _in_steps,
    "block-quota": _block_quota,
    "editing": _editing,
    "sub-blocks": _sub_blocks,
    "shares": _shares,
    "lotteries": _lotteries,
    "remasking": _remasking,
}
