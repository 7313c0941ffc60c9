"""Intervals and p-values of paired answers, by what must hold for any counts."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.agreement import wilson
from exporter.evaluation.paired import Pairs, count_pairs, difference_interval, mcnemar

COUNTS = st.tuples(*[st.integers(0, 300)] * 4).filter(any).map(lambda counts: Pairs(*counts))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_counts_give_back_both_accuracies(answers: list[tuple[bool, bool]]) -> None:
    ours, theirs = zip(*answers, strict=True)
    pairs = count_pairs(ours, theirs)
    assert pairs.count == len(answers)
    assert pairs.both + pairs.ours == sum(ours)
    assert pairs.both + pairs.theirs == sum(theirs)
    assert pairs.difference == pytest.approx((sum(ours) - sum(theirs)) / len(answers))


@given(COUNTS)
def test_interval_holds_the_difference_and_turns_with_the_sides(pairs: Pairs) -> None:
    low, high = difference_interval(pairs)
    assert -1 - 1e-12 <= low <= pairs.difference <= high <= 1 + 1e-12
    turned = Pairs(pairs.both, pairs.theirs, pairs.ours, pairs.neither)
    assert difference_interval(turned) == pytest.approx((-high, -low))
    assert mcnemar(turned) == mcnemar(pairs)


def test_uncorrelated_pairs_have_the_interval_of_two_samples() -> None:
    """With a d = b c the square of a half width is the sum of the squares of two (Newcombe)."""
    pairs = Pairs(60, 20, 30, 10)
    (low1, high1), (low2, high2) = wilson(80, 120), wilson(90, 120)
    low, high = difference_interval(pairs)
    assert pairs.difference - low == pytest.approx(math.hypot(80 / 120 - low1, high2 - 90 / 120))
    assert high - pairs.difference == pytest.approx(math.hypot(high1 - 80 / 120, 90 / 120 - low2))


def test_agreement_narrows_the_interval() -> None:
    """Same accuracies, but right and wrong on the same prompts."""
    apart, alike = (
        difference_interval(Pairs(49, 21, 21, 9)),
        difference_interval(Pairs(69, 1, 1, 29)),
    )
    assert alike[1] - alike[0] < (apart[1] - apart[0]) / 2


def test_more_prompts_narrow_the_interval_as_the_root() -> None:
    few, many = (
        difference_interval(Pairs(80, 8, 5, 7)),
        difference_interval(Pairs(8000, 800, 500, 700)),
    )
    # Wilson's interval and the correction differ from the root law by the order of 1 / prompts.
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (3, 1), (2, 2), (0, 6), (7, 3)])
def test_p_value_is_the_share_of_coin_tosses_as_uneven(ours: int, theirs: int) -> None:
    tosses = list(product((0, 1), repeat=ours + theirs))
    uneven = abs(ours - theirs)
    as_uneven = sum(abs(2 * sum(toss) - len(toss)) >= uneven for toss in tosses)
    assert mcnemar(Pairs(5, ours, theirs, 5)) == pytest.approx(as_uneven / len(tosses))
