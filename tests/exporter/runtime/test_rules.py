"""Selection rules against direct readings of their definitions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.rules import (
    above_threshold,
    apart,
    capped,
    confidence,
    hierarchy,
    leap,
    leftmost,
    margin_doubt,
    near_best,
    odds_of,
    revoked,
    surest,
    threshold_or_quota,
    weighted,
    within_entropy,
    within_factor,
)

value = st.one_of(st.floats(0, 50), st.sampled_from([0.0, 1.0, float("inf"), float("nan")]))
odds = st.lists(value, min_size=1, max_size=12).map(np.asarray)
thresholds = st.one_of(st.floats(0.01, 1), st.just(0.5))  # odds of 1 stand at 0.5


@st.composite
def placed(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Odds and their positions, ascending, with gaps."""
    rest = draw(odds)
    gaps = draw(st.lists(st.integers(1, 3), min_size=len(rest), max_size=len(rest)))
    return rest, np.cumsum(gaps)


def passes(rest: float, threshold: float, strict: bool) -> bool:
    """p > threshold or p >= threshold in odds, exact where a probability saturates."""
    limit = 1 / threshold - 1
    return rest < limit if strict else rest <= limit


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


def test_leftmost_takes_the_first() -> None:
    assert leftmost(np.asarray([3.0, 1.0, 2.0]), 2).tolist() == [0, 1]
    assert leftmost(np.asarray([3.0]), 4).tolist() == [0]


@settings(deadline=None)
@given(odds, thresholds, st.booleans())
def test_threshold_takes_all_that_pass_and_the_surest(
    rest: np.ndarray, threshold: float, strict: bool
) -> None:
    taken = set(above_threshold(rest, threshold, strict).tolist())
    passing = {n for n, odd in enumerate(rest) if passes(odd, threshold, strict)}
    assert taken == passing | {int(surest(rest, 1)[0])}


@settings(deadline=None)
@given(odds, thresholds, st.integers(1, 12))
def test_a_cap_keeps_the_surest_of_what_passes(
    rest: np.ndarray, threshold: float, most: int
) -> None:
    passing = above_threshold(rest, threshold, strict=True)
    taken = capped(rest, threshold, most)
    assert len(taken) == min(len(passing), most)
    assert {*taken.tolist()} == {*surest(rest, len(taken)).tolist()}


@settings(deadline=None)
@given(odds, thresholds, st.integers(-1, 12))
def test_the_least_sure_tokens_are_put_back_and_not_too_many(
    rest: np.ndarray, threshold: float, most: int
) -> None:
    put_back = revoked(rest, threshold, most)
    key = np.nan_to_num(rest, nan=np.inf, posinf=np.inf)
    unsure = [n for n, odd in enumerate(rest) if not passes(odd, threshold, strict=False)]
    want = sorted(unsure, key=lambda n: (-key[n], n))[: max(most, 0)]
    assert put_back.tolist() == want


def test_a_threshold_itself_passes_where_upstream_lets_it() -> None:
    half = np.asarray([0.0, 1.0])  # p = 1, 1/2
    assert above_threshold(half, 0.5).tolist() == [0, 1]
    assert above_threshold(half, 0.5, strict=True).tolist() == [0]
    assert threshold_or_quota(half, 0.5, 1).tolist() == [0]


@settings(deadline=None)
@given(odds, thresholds, st.integers(0, 12))
def test_threshold_or_quota_is_the_larger_of_both(
    rest: np.ndarray, threshold: float, quota: int
) -> None:
    passing = [n for n, odd in enumerate(rest) if passes(odd, threshold, strict=True)]
    taken = threshold_or_quota(rest, threshold, quota).tolist()
    if len(passing) >= max(quota, 1):
        assert taken == passing
    else:
        assert taken == surest(rest, max(quota, 1)).tolist()


@settings(deadline=None)
@given(odds, thresholds)
def test_near_best_lowers_the_threshold_to_the_best(rest: np.ndarray, threshold: float) -> None:
    p = 1 / (1 + rest)
    best = int(surest(rest, 1)[0])
    need = min(threshold, p[best] - 1e-5)
    taken = set(near_best(rest, threshold).tolist())
    assert best in taken
    for n in set(range(len(rest))) - {best}:
        if abs(p[n] - need) > 1e-12:  # an odd and its probability round apart
            assert (n in taken) == (p[n] > need and np.isfinite(rest[n]))


@settings(deadline=None)
@given(placed(), thresholds, thresholds)
def test_hierarchy_takes_the_surest_of_each_run(
    candidates: tuple[np.ndarray, np.ndarray], high: float, low: float
) -> None:
    rest, positions = candidates
    runs: list[list[int]] = []
    for n, position in enumerate(positions):
        if not n or position > positions[n - 1] + 1:
            runs.append([])
        runs[-1].append(n)
    want = {n for n, odd in enumerate(rest) if passes(odd, high, strict=True)}
    want |= {int(surest(rest, 1)[0])}
    for run in runs:
        best = run[int(surest(rest[run], 1)[0])]
        want |= {best} if passes(rest[best], low, strict=True) else set()
    assert set(hierarchy(rest, positions, high, low).tolist()) == want


@settings(deadline=None)
@given(placed(), thresholds, thresholds, st.integers(0, 4))
def test_leap_lowers_the_threshold_beside_anchors(
    candidates: tuple[np.ndarray, np.ndarray], high: float, low: float, radius: int
) -> None:
    rest, positions = candidates
    anchors = [n for n, odd in enumerate(rest) if passes(odd, high, strict=False)]
    want = set(anchors) | {int(surest(rest, 1)[0])}
    for n, odd in enumerate(rest):
        near = any(abs(positions[n] - positions[a]) <= radius for a in anchors)
        want |= {n} if near and passes(odd, low, strict=False) else set()
    assert set(leap(rest, positions, high, low, radius).tolist()) == want


@settings(deadline=None)
@given(placed(), thresholds, st.integers(0, 6))
def test_apart_keeps_unsure_neighbours_for_later(
    candidates: tuple[np.ndarray, np.ndarray], threshold: float, quota: int
) -> None:
    rest, positions = candidates
    taken = apart(rest, positions, threshold, quota).tolist()
    assert 1 <= len(taken) <= max(quota, 1)
    assert taken[0] == surest(rest, 1)[0]
    for later, n in enumerate(taken):
        for other in taken[:later]:
            assert abs(positions[n] - positions[other]) > 1 or passes(rest[n], threshold, False)


@settings(deadline=None)
@given(odds, st.floats(0, 100))
def test_entropy_bound_is_the_sum_without_the_largest(entropy: np.ndarray, gamma: float) -> None:
    order = surest(entropy, len(entropy)).tolist()
    count = 1
    while count < len(order) and np.isfinite(entropy[order[count]]):
        # in order the largest of the first n is the n-th; it alone may be as large as it likes
        if sum(entropy[order[:count]]) > gamma:
            break
        count += 1
    taken = within_entropy(entropy, gamma).tolist()
    finite = [n for n in taken if np.isfinite(entropy[n])] or taken[:1]
    assert finite == order[: max(count, 1)][: len(finite)]
    assert len(finite) == max(min(count, int(np.isfinite(entropy).sum())), 1)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 300))
def test_odds_of_a_token_below_the_best(rest: float, gap: float) -> None:
    p = np.exp(-gap) / (1 + rest)
    got = odds_of(np.asarray([rest]), np.asarray([gap]))[0]
    assert abs(got - (1 - p) / p) <= 1e-12 * (1 + got)


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


def test_confidence_is_what_dream_calls_it() -> None:
    doubt = np.asarray([0.25, 0.5])
    assert confidence(doubt, "odds").tolist() == [1 / 1.25, 1 / 1.5]
    assert confidence(doubt, "margin").tolist() == [0.75, 0.5]
    assert confidence(doubt, "entropy").tolist() == [-0.25, -0.5]


def test_weighted_draws_without_replacement() -> None:
    """Ordered pairs come with p_i p_j / (1 - p_i), p = softmax(confidence / alg_temp)."""
    sure = np.asarray([-0.1, -0.4, -0.9])
    w = np.exp(sure / 0.5)
    p = w / w.sum()
    want = {(i, j): p[i] * p[j] / (1 - p[i]) for i in range(3) for j in range(3) if i != j}
    rng, draws = np.random.Generator(np.random.PCG64(0)), 20_000
    seen = dict.fromkeys(want, 0)
    for _ in range(draws):
        i, j = weighted(sure, 0.5, 2, rng)
        seen[int(i), int(j)] += 1
    chi2 = sum((seen[k] - draws * want[k]) ** 2 / (draws * want[k]) for k in want)
    assert chi2 < 5 + 2 * np.sqrt(5 * 14) + 2 * 14  # Laurent-Massart: exceeded once in e^14
