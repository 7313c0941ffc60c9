"""What trials say: means, and intervals that hold what they promise."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exporter.ablation.ablate import FLOAT, Trial
from exporter.ablation.summary import Difference, Summary, summarize
from exporter.evaluation.accuracy import accuracies
from exporter.evaluation.evaluate import Evaluation
from exporter.evaluation.generation import Outcome
from exporter.evaluation.straying import Forced, Straying


def trial(
    recipe: str,
    right: Sequence[bool],
    seed: int = 0,
    tasks: Sequence[str] = ("task",),
    forced: tuple[float | None, float | None] | None = None,
    bits: float = 4.25,
) -> Trial:
    """Answers to prompts of `tasks` in turn; `forced` are agreement and KL of trajectories."""
    outcomes = [
        Outcome(index, tasks[index % len(tasks)], "", bool(correct), 8, 8)
        for index, correct in enumerate(right)
    ]
    strayed = None
    if forced is not None:
        means = Forced(32, forced[0], None, None, forced[1])
        strayed = Straying(4, 32, 1.0, 1.0, (0.5, 1.0), 1.0, means, [])
    figures = Evaluation(
        "model", "digest", recipe, None, None, accuracies(outcomes, None), [], strayed
    )
    return Trial(recipe, seed, bits, tuple(outcomes), figures)


def by_name(trials: Sequence[Trial], bases: dict[str, str]) -> dict[str, Summary]:
    return {row.recipe: row for row in summarize(trials, bases)}


ANSWERS = st.integers(1, 30).flatmap(
    lambda count: st.lists(
        st.lists(st.booleans(), min_size=count, max_size=count), min_size=3, max_size=6
    )
)


@settings(max_examples=25, deadline=None)
@given(ANSWERS, st.integers(1, 3))
def test_figures_are_means_over_prompts_and_seeds(answers: list[list[bool]], kinds: int) -> None:
    reference, base, *seeds = answers
    tasks = [f"task {number}" for number in range(min(kinds, len(reference)))]
    trials = [trial(FLOAT, reference, tasks=tasks), trial("base", base, tasks=tasks)]
    trials += [trial("ours", right, seed, tasks) for seed, right in enumerate(seeds)]
    found = by_name(trials, {"base": "base", "ours": "base"})
    assert list(found) == [FLOAT, "base", "ours"]
    ours, table = found["ours"], np.array(seeds)
    assert (ours.seeds, ours.prompts) == (len(seeds), len(reference))
    assert ours.accuracy == pytest.approx(table.mean())
    assert ours.worst == pytest.approx(table.mean(1).min())
    assert list(ours.by_task) == tasks
    for number, task in enumerate(tasks):
        assert ours.by_task[task] == pytest.approx(table[:, number :: len(tasks)].mean())
    assert ours.minus_float.mean == pytest.approx(table.mean() - np.mean(reference))
    assert ours.minus_base is not None
    assert ours.minus_base.mean == pytest.approx(table.mean() - np.mean(base))
    assert found[FLOAT].minus_base is found["base"].minus_base is None
    for row in found.values():
        shown = [(row.accuracy, row.interval), *pairs(row.minus_float), *pairs(row.minus_base)]
        for mean, (low, high) in shown:
            assert low <= mean + 1e-12 and mean - 1e-12 <= high


def pairs(difference: Difference | None) -> list[tuple[float, tuple[float, float]]]:
    return [] if difference is None else [(difference.mean, difference.interval)]


@settings(max_examples=15, deadline=None)
@given(ANSWERS)
def test_identical_trials_differ_by_exactly_nothing(answers: list[list[bool]]) -> None:
    """Whatever the order of their seeds."""
    reference, *seeds = answers
    trials = [trial(FLOAT, reference)]
    trials += [trial("one", right, seed) for seed, right in enumerate(seeds)]
    trials += [trial("other", right, seed) for seed, right in enumerate(reversed(seeds))]
    trials += [trial("float again", reference)]
    found = by_name(trials, {"one": "other", "float again": FLOAT})
    assert found["one"].minus_base == Difference(0.0, (0.0, 0.0))
    assert found["float again"].minus_float == Difference(0.0, (0.0, 0.0))
    assert found["one"].interval == found["other"].interval


def mixed(right: int, wrong: int) -> list[bool]:
    return [True] * right + [False] * wrong


def test_all_is_won_back_nothing_or_a_share() -> None:
    reference, base, half = mixed(90, 10), mixed(40, 60), mixed(65, 35)
    trials = [trial(FLOAT, reference), trial("base", base), trial("same", base)]
    trials += [trial("all", reference), trial("half", half), trial("worse", mixed(15, 85))]
    found = by_name(trials, dict.fromkeys(["same", "all", "half", "worse"], "base"))
    assert found["all"].recovered == Difference(1.0, (1.0, 1.0))
    assert found["same"].recovered == Difference(0.0, (0.0, 0.0))
    for name, share in (("half", 0.5), ("worse", -0.5)):
        recovered = found[name].recovered
        assert recovered is not None
        assert recovered.mean == pytest.approx(share)
        assert recovered.interval[0] < share < recovered.interval[1]
    assert found["base"].recovered is None  # it is not compared with anything


@pytest.mark.parametrize("base", [mixed(90, 10), mixed(95, 5), [not x for x in mixed(10, 90)]])
def test_where_the_base_loses_nothing_nothing_is_won_back(base: list[bool]) -> None:
    trials = [trial(FLOAT, mixed(90, 10)), trial("base", base), trial("ours", mixed(89, 11))]
    assert by_name(trials, {"ours": "base"})["ours"].recovered is None


def test_a_loss_within_the_noise_is_none() -> None:
    """One prompt in a hundred: a third of all resamples lose nothing."""
    trials = [trial(FLOAT, mixed(90, 10)), trial("base", mixed(89, 11))]
    trials.append(trial("ours", mixed(90, 10)))
    assert by_name(trials, {"ours": "base"})["ours"].recovered is None


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 9), st.integers(0, 9))
def test_few_lost_prompts_give_a_finite_share(lost: int, back: int) -> None:
    """Some resamples hold none of the lost prompts, and 0 / 0 is no share."""
    assume(back <= lost)
    trials = [trial(FLOAT, mixed(90, 10)), trial("base", mixed(90 - lost, 10 + lost))]
    trials.append(trial("ours", mixed(90 - lost + back, 10 + lost - back)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recovered = by_name(trials, {"ours": "base"})["ours"].recovered
    assert recovered is not None
    low, high = recovered.interval
    assert 0 <= low <= recovered.mean <= high <= 1
    assert recovered.mean == pytest.approx(back / lost)


def test_an_unknown_base_compares_with_nothing() -> None:
    trials = [trial(FLOAT, mixed(9, 1)), trial("ours", mixed(8, 2))]
    row = by_name(trials, {"ours": "absent"})["ours"]
    assert row.minus_base is None and row.recovered is None
    assert row.minus_float.mean == pytest.approx(-0.1)


def test_trajectories_are_means_over_the_seeds_that_have_them() -> None:
    trials = [trial(FLOAT, mixed(1, 0), bits=32.0)]
    forced = [(0.5, 0.25), (1.0, 0.75), (None, None)]
    trials += [trial("ours", mixed(1, 0), seed, forced=f) for seed, f in enumerate(forced)]
    found = by_name(trials, {})
    assert (found["ours"].agreement, found["ours"].kl) == (0.75, 0.5)
    assert (found[FLOAT].agreement, found[FLOAT].kl) == (None, None)
    assert (found["ours"].bits, found[FLOAT].bits) == (4.25, 32.0)


@pytest.mark.parametrize("right", [80, 200, 300])
def test_of_many_prompts_the_interval_is_the_normal_one(right: int) -> None:
    """1.96 standard errors s to either side.

    A 2.5 % quantile of 4000 resamples is off by 0.042 s, here four times that; accuracies are
    whole prompts, of which s is at least 8: another 0.07 s.
    """
    count = 400
    row = by_name([trial(FLOAT, mixed(right, count - right))], {})[FLOAT]
    error = math.sqrt(row.accuracy * (1 - row.accuracy) / count)
    assert error * count >= 8
    for end, side in zip(row.interval, (-1.96, 1.96), strict=True):
        assert (end - row.accuracy) / error == pytest.approx(side, abs=4 * 0.042 + 0.07)


PROMPTS, SEEDS, REPETITIONS = 120, 3, 200


def simulated(draw: np.random.Generator) -> list[Trial]:
    """Prompts of a population: difficult ones are difficult for all models under all seeds."""
    ease = draw.beta(0.5, 0.5, PROMPTS)  # most prompts are nearly always right or wrong
    chance = {FLOAT: 0.5 + 0.5 * ease, "base": 0.6 * ease, "ours": 0.2 + 0.7 * ease}
    return [
        trial(name, (draw.random(PROMPTS) < p).tolist(), seed)
        for name, p in chance.items()
        for seed in range(1 if name == FLOAT else SEEDS)
    ]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Seeds see the same prompts: taken as independent, they would make intervals too narrow.

    The bootstrap's own error at 120 prompts is some tenths of a percent; the bounds are those that
    a binomial share of 95 % leaves twice in a thousand times.
    """
    truth = {"float": 0.75, "base": 0.3, "ours": 0.55}  # the mean ease is 1/2
    hits = dict.fromkeys(["accuracy", "minus float", "minus base", "recovered"], 0)
    for repetition in range(REPETITIONS):
        found = by_name(simulated(np.random.default_rng(repetition)), {"ours": "base"})["ours"]
        assert found.minus_base is not None and found.recovered is not None
        shown = {
            "accuracy": (found.interval, truth["ours"]),
            "minus float": (found.minus_float.interval, truth["ours"] - truth["float"]),
            "minus base": (found.minus_base.interval, truth["ours"] - truth["base"]),
            "recovered": (found.recovered.interval, (0.55 - 0.3) / (0.75 - 0.3)),
        }
        for name, ((low, high), value) in shown.items():
            hits[name] += low <= value <= high
    spread = 3.1 * math.sqrt(REPETITIONS * 0.95 * 0.05)
    for name, count in hits.items():
        assert abs(count - 0.95 * REPETITIONS) <= spread, f"{name}: {count} of {REPETITIONS}"
