"""What the trials of an ablation say, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exporter.ablation.ablate import FLOAT, Trial

RESAMPLES = 4000
ALL = "all"
Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Mean accuracy over the seeds minus another's, on the same prompts."""

    mean: float
    interval: Interval  # 95 %


@dataclass(frozen=True)
class Summary:
    """One recipe over its seeds."""

    recipe: str
    bits: float  # a weight in the blocks
    seeds: int
    prompts: int
    accuracy: float
    interval: Interval  # 95 %
    worst: float  # of the seeds
    by_task: dict[str, float]
    minus_float: Difference
    minus_base: Difference | None  # the recipe that it was compared with
    recovered: Difference | None  # share of what the base loses that is won back
    agreement: float | None  # arg-max at the positions to be committed
    kl: float | None  # there, nats


def summarize(trials: Sequence[Trial], bases: dict[str, str]) -> list[Summary]:
    """One a recipe, in order; `bases` names the recipe that another is compared with.

    Intervals are those of the bootstrap over prompts (Efron and Tibshirani 1993, section 13.3,
    percentiles): a prompt is drawn with its answers under all seeds, so that the seeds, which see
    the same prompts, do not count as independent.
    """
    names = list(dict.fromkeys(trial.recipe for trial in trials))
    found = {name: [trial for trial in trials if trial.recipe == name] for name in names}
    right = {name: _right(trials) for name, trials in found.items()}
    count = len(right[FLOAT])
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    return [_summary(found[name], right, draws, bases.get(name)) for name in names]


def _right(trials: Sequence[Trial]) -> Floats:
    """Share of the seeds that answer each prompt right."""
    table = [[bool(outcome.correct) for outcome in trial.outcomes] for trial in trials]
    shares: Floats = np.array(table, np.float64).mean(0)
    return shares


def _summary(
    trials: Sequence[Trial], right: dict[str, Floats], draws: npt.NDArray[np.int64],
    base: str | None,
) -> Summary:  # fmt: skip
    name = trials[0].recipe
    mine, reference = right[name], right[FLOAT]
    tasks = np.array([outcome.task for outcome in trials[0].outcomes])
    known = base in right and base != name
    forced = [t.figures.trajectory.forced for t in trials if t.figures.trajectory is not None]
    return Summary(
        recipe=name,
        bits=trials[0].bits,
        seeds=len(trials),
        prompts=len(mine),
        accuracy=float(mine.mean()),
        interval=_percentiles(mine[draws].mean(1)),
        worst=min(float(_right([trial]).mean()) for trial in trials),
        by_task={str(task): float(mine[tasks == task].mean()) for task in dict.fromkeys(tasks)},
        minus_float=_difference(mine, reference, draws),
        minus_base=_difference(mine, right[str(base)], draws) if known else None,
        recovered=_recovered(mine, right[str(base)], reference, draws) if known else None,
        agreement=_mean([f.agreement for f in forced]),
        kl=_mean([f.kl for f in forced]),
    )


def _difference(ours: Floats, theirs: Floats, draws: npt.NDArray[np.int64]) -> Difference:
    apart = ours - theirs
    return Difference(float(apart.mean()), _percentiles(apart[draws].mean(1)))


def _recovered(
    ours: Floats, base: Floats, reference: Floats, draws: npt.NDArray[np.int64]
) -> Difference | None:
    """(ours - base) / (float - base); None where the base loses nothing that could be won back.

    Resamples in which nothing is lost, less than 2.5 % of them, have no share and do not count.
    """
    lost = (reference - base)[draws].mean(1)
    if reference.mean() <= base.mean() or np.percentile(lost, 2.5) <= 0:
        return None
    some = lost > 0
    share = float((ours.mean() - base.mean()) / (reference.mean() - base.mean()))
    return Difference(share, _percentiles((ours - base)[draws].mean(1)[some] / lost[some]))


def _percentiles(values: Floats) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
