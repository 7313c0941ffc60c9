"""The decode loop: which positions are open, one forward, which candidates to commit; again.

The same code decodes in a bundle and drives the float model in calibration and in the gate. Rows of
a batch are independent: own quotas, own random numbers, own end. Without a cache a row with nothing
to do is not fed to the model. A call in which no row has anything to do is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .bundle import ModelFacts
from .candidates import candidates
from .credit import Credits
from .early_commit import ready
from .ending import close_finished
from .errors import UserError
from .forward import Feeder, causal_call
from .growth import Growth, grow, shorten
from .plan import calls
from .selection import Commit, Edit, select
from .session import Bools, Ints, Reductions, Session
from .settings import Settings
from .task import Task, make_task


@dataclass(frozen=True)
class Step:
    """One model call and what came of it. `index` counts skipped calls of the upstream loop too."""

    index: int
    block: int
    canvas_before: Ints  # [B, L] what the model saw, from `start` to `stop`
    window: Ints  # [W] positions that were predicted
    commits: list[Commit]  # ascending
    reductions: Reductions  # [B, W]; rows that were not fed hold -1 and infinity
    start: int = 0  # of what was fed
    stop: int = 0  # its end; block-causal models see nothing behind it
    edits: list[Edit] = field(default_factory=list)  # tokens replaced by others, or by the mask
    grown: list[Growth] = field(default_factory=list)  # masks inserted after that
    causal: bool = False  # no position saw what stands behind it: a call that seeds blocks


@dataclass
class Result:
    """What `decode` fills while it runs."""

    canvas: Ints  # [B, L]
    forwards: int = 0
    skipped: int = 0  # upstream calls that could not change anything
    inexact_draws: int = 0  # candidates that did not follow the exact distribution
    nans: int = 0  # predictions that were not a number


def generate(
    session: Session,
    model: ModelFacts,
    settings: Settings,
    canvas: Ints,
    prompt_length: int,
    key_mask: Bools,
) -> Result:
    """Run `decode` to its end."""
    result = Result(canvas)
    for _ in decode(session, model, settings, canvas, prompt_length, key_mask, result):
        pass
    return result


def decode(
    session: Session,
    model: ModelFacts,
    settings: Settings,
    canvas: Ints,
    prompt_length: int,
    key_mask: Bools,
    result: Result | None = None,
) -> Iterator[Step]:
    """Fill the masks of `canvas` [B, L] in place and yield one `Step` for each model call.

    The generated region, `gen_length` long, starts at `prompt_length`; block-causal models fill
    their last block to its end. Masks before it are filled too: first by block samplers, together
    with the rest by canvas samplers. Tokens that stand at the start are never changed, and no mask
    is left at the end. With `early_stop` a row ends at its first end-of-text token once no mask is
    left before it, or with the block where the sampler `finishes`; masks behind it become
    end-of-text tokens. A sampler that `grows` takes the generated region as room, and changes
    `key_mask` in place too: what it hides at the end holds end-of-text tokens and is no part of the
    answer. `result` is filled on the way. Raises `UserError` for what this loop cannot
    decode, and for a session that predicts the mask id.
    """
    task = make_task(model, settings, canvas, prompt_length, key_mask)
    result = Result(canvas) if result is None else result
    rngs = [np.random.Generator(np.random.PCG64([settings.seed, r])) for r in range(len(canvas))]
    if settings.rule.grows:
        shorten(task)
    feed, credits_ = Feeder(session, task), Credits(settings)
    if settings.early_stop and _ended(task):
        return
    for index, call in enumerate(calls(task, rngs)):
        if not call.rows.any():
            result.skipped += 1
            continue
        before, watched = canvas.copy(), call.places
        if call.watched is not None:
            watched = watched | call.watched
        if settings.early_commit:
            watched = watched | task.masked() & call.rows[:, None]
        window = np.flatnonzero(watched.any(0))
        found, start, stop = feed(call, window)
        whole = np.full(len(canvas), call.whole)
        if settings.early_commit:
            whole |= ready(found, watched[:, window], task)
        places = np.where(whole[:, None], watched, call.places)
        used, unknown = found, 0
        if settings.rule.credited:
            used, unknown = credits_.fuse(found, call, window)
        offered = candidates(used, places[:, window], model, settings, rngs)
        result.forwards += 1
        result.inexact_draws += offered.inexact + unknown
        result.nans += int(np.isnan(found["rest"][places[:, window]]).sum())
        commits, edits = select(offered, found, call, window, task, rngs, whole)
        _write(task, commits, edits)
        grown = grow(task, call, window, found, offered)
        ended = settings.early_stop and settings.stops_at_once and _ended(task)
        yield Step(
            index, call.block, before, window, commits, found, start, stop, edits, grown,
            causal_call(task, call),
        )  # fmt: skip
        if ended:
            return


def _ended(task: Task) -> bool:
    """Close the finished rows; True when all are."""
    return bool(close_finished(task.canvas, task.prompt_length, task.model).all())


def _write(task: Task, commits: list[Commit], edits: list[Edit]) -> None:
    for row, position, token in commits:
        task.canvas[row, position] = _checked(task.model, row, position, token)
    for row, position, _, token in edits:
        remasked = task.settings.rule.held  # and not predicted
        new = token if remasked else _checked(task.model, row, position, token)
        task.canvas[row, position] = new


def _checked(model: ModelFacts, row: int, position: int, token: int) -> int:
    if token == model.mask_id or not 0 <= token < model.vocab_size:
        raise UserError(
            f"the model predicted id {token} at row {row}, position {position}: it is the mask"
            f" id {model.mask_id}, or not among the {model.vocab_size} of the vocabulary",
            hint="the graph must suppress these: build the bundle again",
        )
    return token
