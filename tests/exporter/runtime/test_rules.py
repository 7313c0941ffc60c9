"""Selection rules against direct readings of their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.rules import (
    above_threshold,
    margin_doubt,
    surest,
    weighted,
    within_factor,
)
from exporter.runtime.settings import Settings

odds = st.lists(
    st.one_of(st.floats(0, 50), st.sampled_from([0.0, 1.0, float("inf"), float("nan")])),
    min_size=1,
    max_size=12,
).map(np.asarray)


@settings(deadline=None)
@given(odds, st.integers(1, 12))
def test_surest_takes_the_lowest_position_of_equals(rest: np.ndarray, count: int) -> None:
    key = np.nan_to_num(rest, nan=np.inf, posinf=np.finfo(float).max)
    want = sorted(range(len(rest)), key=lambda i: (key[i], i))[:count]
    assert surest(rest, count).tolist() == want


def test_surest_sees_what_probabilities_lose() -> None:
    rest = np.asarray([3e-20, 1e-20, 2e-20])
    assert len(set(1 / (1 + rest))) == 1
    assert surest(rest, 3).tolist() == [1, 2, 0]


@settings(deadline=None)
@given(odds, st.floats(0.01, 1))
def test_threshold_takes_all_that_pass_and_the_surest(rest: np.ndarray, threshold: float) -> None:
    taken = set(above_threshold(rest, threshold).tolist())
    with np.errstate(invalid="ignore"):
        passing = set(np.flatnonzero(rest <= 1 / threshold - 1).tolist())
    assert taken == passing | {int(surest(rest, 1)[0])}


@settings(deadline=None)
@given(odds, st.floats(0.1, 4))
def test_factor_is_the_upstream_walk(rest: np.ndarray, factor: float) -> None:
    order, count = surest(rest, len(rest)).tolist(), 0
    for n, place in enumerate(order, start=1):
        need = 1 - factor / (n + 1)
        # p >= need, in odds: exact where the probability saturates
        passes = n == 1 or need <= 0 or rest[place] <= 1 / need - 1
        last = n == len(order)
        if passes or last:
            count += 1
        if not passes:
            break
    assert within_factor(rest, factor).tolist() == order[:count]


@settings(deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 700))
def test_margin_doubt_is_one_minus_the_margin(rest: float, gap: float) -> None:
    p1 = 1 / (1 + rest)
    got = margin_doubt(np.asarray([rest]), np.asarray([gap]))[0]
    assert abs(got - (1 - (p1 - p1 * np.exp(-gap)))) <= 4 * np.finfo(float).eps


def test_margin_doubt_of_unknown_odds_is_infinite() -> None:
    assert margin_doubt(np.asarray([np.inf, np.nan]), np.zeros(2)).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize(
    ("sampler", "confidence"),
    [
        ("maskgit-plus", lambda d: 1 / (1 + d)),
        ("topk-margin", lambda d: 1 - d),
        ("entropy", lambda d: -d),
    ],
)
def test_weighted_draws_without_replacement(sampler: str, confidence) -> None:  # type: ignore[no-untyped-def]
    """Ordered pairs come with p_i p_j / (1 - p_i), p = softmax(confidence / alg_temp)."""
    doubt = np.asarray([0.1, 0.4, 0.9])
    settings = Settings(sampler=sampler, alg_temp=0.5)
    w = np.exp(confidence(doubt) / 0.5)
    p = w / w.sum()
    want = {(i, j): p[i] * p[j] / (1 - p[i]) for i in range(3) for j in range(3) if i != j}
    rng, draws = np.random.Generator(np.random.PCG64(0)), 20_000
    seen = dict.fromkeys(want, 0)
    for _ in range(draws):
        i, j = weighted(doubt, 2, settings, rng)
        seen[int(i), int(j)] += 1
    chi2 = sum((seen[k] - draws * want[k]) ** 2 / (draws * want[k]) for k in want)
    assert chi2 < 5 + 2 * np.sqrt(5 * 14) + 2 * 14  # Laurent-Massart: exceeded once in e^14
