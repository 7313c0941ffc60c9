"""Which settings win, and which are worth a try."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.evaluation.accuracy import versus
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.settings import Settings
from exporter.tuning.candidates import rules, schedules
from exporter.tuning.search import Trial, frontier, winner

FACTS = ModelFacts(
    family="llada",
    name="toy",
    attention="full",
    shift=False,
    corruption="absorbing",
    block_seed="mask",
    vocab_size=10,
    max_length=64,
    mask_id=9,
    eos_id=7,
    eot_id=6,
    pad_id=8,
    special_ids=(7, 6),
)


def trial(name: str, right: list[bool], base: list[bool], seconds: float) -> Trial:
    share = sum(right) / len(right)
    return Trial(name, {}, len(right), share, versus(right, base), 1.0, seconds)


answers = st.lists(st.booleans(), min_size=6, max_size=6)
TRIALS = st.lists(st.tuples(answers, st.floats(0.1, 10)), min_size=1, max_size=8)


def made(drawn: list[tuple[list[bool], float]]) -> list[Trial]:
    return [trial(str(n), right, drawn[0][0], s) for n, (right, s) in enumerate(drawn)]


@given(drawn=TRIALS, budget=st.floats(0, 1))
def test_the_winner_is_the_fastest_that_gives_up_no_more_than_the_budget(
    drawn: list[tuple[list[bool], float]], budget: float
) -> None:
    trials = made(drawn)
    best = winner(trials, budget)
    lost = {t.name: (sum(drawn[0][0]) - sum(d[0])) / 6 for t, d in zip(trials, drawn, strict=True)}
    assert lost[best.name] <= budget
    assert all(lost[t.name] > budget or t.seconds >= best.seconds for t in trials)


@given(drawn=TRIALS)
def test_nothing_beats_the_frontier_in_both(drawn: list[tuple[list[bool], float]]) -> None:
    trials = made(drawn)
    edge = frontier(trials)
    for one in trials:
        beaten = [t for t in edge if t.seconds <= one.seconds and t.accuracy >= one.accuracy]
        assert beaten
    assert all(a.seconds < b.seconds and a.accuracy < b.accuracy for a, b in pairwise(edge))


@pytest.mark.parametrize("length", [8, 48, 128])
def test_candidates_are_settings_that_hold(length: int) -> None:
    settings = Settings(gen_length=length, block_length=8)
    found = rules(FACTS, settings)
    assert len({c.name for c in found}) == len(found)
    for candidate in found:
        replace(settings, **candidate.decode)
        for schedule in schedules(FACTS, settings):
            merged = {**candidate.decode, **schedule}
            if "steps" not in merged:
                replace(settings, **merged)


def test_block_causal_models_are_tried_with_their_own_rules() -> None:
    facts = replace(FACTS, attention="block-causal")
    settings = Settings(gen_length=32, block_length=4)
    assert not {c.decode["sampler"] for c in rules(facts, settings)} & {"threshold", "factor"}
    assert schedules(facts, settings) == []
