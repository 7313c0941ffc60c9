"""The decode loop: which positions are open, one forward, which candidates to commit; again.

The same code decodes in a bundle and drives the float model in calibration and in the gate. Rows of
a batch are independent: own quotas, own random numbers, own end. A row with nothing to do is not
fed to the model, and a call in which no row has anything to do is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .bundle import ModelFacts
from .candidates import Candidates, candidates
from .ending import close_finished
from .errors import UserError
from .forward import forward
from .plan import Call, Generators, calls
from .rules import above_threshold, surest, weighted, within_factor
from .session import Bools, Floats, Ints, Reductions, Session
from .settings import Settings
from .task import Task, make_task

Commit = tuple[int, int, int]  # (row, position, id)


@dataclass(frozen=True)
class Step:
    """One model call and what came of it. `index` counts skipped calls of the upstream loop too."""

    index: int
    block: int
    canvas_before: Ints  # [B, L] what the model saw
    window: Ints  # [W] positions that were predicted
    commits: list[Commit]  # ascending
    reductions: Reductions  # [B, W]; rows that were not fed hold -1 and infinity


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

    The generated region, `gen_length` long, starts at `prompt_length`. Masks before it are filled
    too: first by block samplers, together with the rest by canvas samplers. Tokens that stand are
    never changed, and no mask is left at the end. With `early_stop` a row ends at its first
    end-of-text token once no mask is left before it; masks behind it become end-of-text tokens.
    `result` is filled on the way. Raises `UserError` for what this loop cannot decode, and for a
    session that predicts the mask id.
    """
    task = make_task(model, settings, canvas, prompt_length, key_mask)
    result = Result(canvas) if result is None else result
    rngs = [np.random.Generator(np.random.PCG64([settings.seed, r])) for r in range(len(canvas))]
    ended = _end_rows(task)
    for index, call in enumerate(calls(task, rngs)):
        if ended:
            return
        if not call.open.any():
            result.skipped += 1
            continue
        before, window = canvas.copy(), np.flatnonzero(call.open.any(0))
        found = forward(session, task, call.open, window)
        open_ = call.open[:, window]
        offered = candidates(found, open_, model, settings, rngs)
        result.forwards += 1
        result.inexact_draws += offered.inexact
        result.nans += int(np.isnan(found["rest"][open_]).sum())
        commits = _choose(offered, call, window, settings, rngs)
        _write(task, commits)
        ended = _end_rows(task)
        yield Step(index, call.block, before, window, commits, found)


def _end_rows(task: Task) -> bool:
    """Early stop: close the finished rows; True when all are."""
    if not task.settings.early_stop:
        return False
    return bool(close_finished(task.canvas, task.prompt_length, task.model).all())


def _choose(
    offered: Candidates, call: Call, window: Ints, settings: Settings, rngs: Generators
) -> list[Commit]:
    """What the rule of the sampler takes from each row."""
    commits: list[Commit] = []
    for row in np.unique(offered.rows):
        first, last = np.searchsorted(offered.rows, [row, row + 1])
        doubt = offered.doubt[first:last]
        quota = len(doubt) if call.quota is None else int(call.quota[row])
        for place in first + np.sort(_take(doubt, quota, settings, rngs[row])):
            position = int(window[offered.columns[place]])
            commits.append((int(row), position, int(offered.ids[place])))
    return commits


def _take(doubt: Floats, quota: int, settings: Settings, rng: np.random.Generator) -> Ints:
    if settings.sampler == "threshold":
        return above_threshold(doubt, settings.threshold)
    if settings.sampler == "factor":
        return within_factor(doubt, settings.factor)
    if settings.by_canvas and settings.sampler != "origin" and settings.alg_temp:
        return weighted(doubt, quota, settings, rng)
    return surest(doubt, quota)


def _write(task: Task, commits: list[Commit]) -> None:
    model = task.model
    for row, position, token in commits:
        if token == model.mask_id or not 0 <= token < model.vocab_size:
            raise UserError(
                f"the model predicted id {token} at row {row}, position {position}: it is the mask"
                f" id {model.mask_id}, or not among the {model.vocab_size} of the vocabulary",
                hint="the graph must suppress these: build the bundle again",
            )
        task.canvas[row, position] = token
