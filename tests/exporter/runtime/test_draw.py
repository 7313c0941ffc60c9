"""Draws follow the filtered distribution, and tell when K logits are not enough for it."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporter.runtime.bundle import ModelFacts
from exporter.runtime.candidates import candidates
from exporter.runtime.draw import Weights, entropy, odds_against, pick, weigh
from exporter.runtime.session import Floats
from exporter.runtime.settings import Settings
from tests.numpy_model import reduce

V = 9
FACTS = ModelFacts(
    family="llada",
    name="toy",
    attention="full",
    shift=False,
    corruption="absorbing",
    block_seed="mask",
    vocab_size=V,
    max_length=64,
    mask_id=8,
    eos_id=7,
    eot_id=None,
    pad_id=7,
    special_ids=(7,),
)
logit_rows = st.lists(st.integers(-40, 40), min_size=V, max_size=V, unique=True).map(
    lambda row: np.asarray([row]) / 8.0
)
temperatures = st.sampled_from([0.3, 1.0, 1.7])
nuclei = st.sampled_from([None, 0.05, 0.5, 0.9, 1.0])
bests = st.sampled_from([None, 1, 3, V])


def softmax(z: Floats) -> Floats:
    p = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def filtered(logits: Floats, scale: float, top_p: float | None, top_k: int | None) -> Floats:
    """Dream's probabilities: temperature, then top_p, then top_k. Distinct logits [1, V]."""
    z = logits / scale
    order = np.argsort(-z[0])
    if top_p is not None and top_p < 1:
        before = np.cumsum(softmax(z)[0, order]) - softmax(z)[0, order]
        z[0, order[before > top_p]] = -np.inf
    if top_k is not None:
        z[0, order[top_k:]] = -np.inf
    return softmax(z)


def settings_for(sampler: str, scale: float, top_p: float | None, top_k: int | None) -> Settings:
    return Settings(sampler=sampler, temperature=scale, top_p=top_p, top_k=top_k)


def cut(logits: Floats, scale: float, count: int) -> tuple[Floats, Floats]:
    """What a graph with K = count returns: (topk_logits, rest_t)."""
    found = reduce(logits, np.zeros(V), scale)
    return found["topk_logits"][:, :count], found["rest_t"]


@settings(deadline=None)
@given(logit_rows, temperatures, nuclei, bests)
def test_weights_are_dreams_filters(
    logits: Floats, scale: float, top_p: float | None, top_k: int | None
) -> None:
    settings = settings_for("entropy", scale, top_p, top_k)
    weights = weigh(*cut(logits, scale, V), scale, settings)
    want = np.sort(filtered(logits.copy(), scale, top_p, top_k))[:, ::-1]
    got = weights.kept / (weights.kept.sum(1) + weights.tail)
    assert np.allclose(got, want, rtol=1e-12, atol=1e-15)
    assert weights.whole.all()


@settings(deadline=None)
@given(logit_rows, temperatures, nuclei, bests, st.integers(2, V))
def test_whole_means_that_a_smaller_k_changes_nothing(
    logits: Floats, scale: float, top_p: float | None, top_k: int | None, count: int
) -> None:
    settings = settings_for("entropy", scale, top_p, top_k)
    some = weigh(*cut(logits, scale, count), scale, settings)
    every = weigh(*cut(logits, scale, V), scale, settings)
    unfiltered = (top_p is None or top_p == 1) and top_k is None
    same = unfiltered or np.allclose(every.kept[:, count:], 0)
    if some.whole[0]:
        # beyond K there is nothing, or no more than what counts as negligible
        left = every.kept[:, count:].sum() - some.tail.sum()
        assert left <= 2.0**-24 * (every.kept.sum() + every.tail.sum()) + 1e-12
        assert np.allclose(every.kept[:, :count], some.kept, rtol=1e-12)
    else:
        assert not same or every.kept[0, count - 1] > 0


@pytest.mark.parametrize("count", [3, V])
def test_draws_follow_the_distribution(count: int) -> None:
    logits = np.asarray([[0.5, 2.0, -1.0, 1.0, 0.0, -0.5, 1.5, -2.0, -3.0]])
    draws, scale = 50_000, 0.8
    uniform = np.random.Generator(np.random.PCG64(0)).random(draws)
    one = weigh(*cut(logits, scale, count), scale, settings_for("entropy", scale, None, None))
    kept, tail = np.repeat(one.kept, draws, 0), np.repeat(one.tail, draws)
    column, exact = pick(Weights(kept, tail, np.repeat(one.whole, draws)), uniform)
    p = np.sort(softmax(logits / scale))[0, ::-1]
    inside = p[:count].sum()
    # u below the mass of the K is exact; the share of the others is a binomial
    assert abs(exact.mean() - inside) <= 5 * np.sqrt(inside * (1 - inside) / draws) + 1e-15
    assert np.array_equal(exact, uniform < inside)
    seen = np.bincount(column, minlength=count)
    want = draws * p[:count] / inside
    chi2, k = ((seen - want) ** 2 / want).sum(), count - 1
    assert chi2 < k + 2 * np.sqrt(k * 14) + 2 * 14  # Laurent-Massart: exceeded once in e^14


LAST = np.nextafter(1.0, 0.0)


@settings(deadline=None)
@example(np.asarray([[3.0, 34, -17, 0, 1, 35, 2, 4, 6]]) / 8, 0.3, None, LAST)  # sums differ
@given(logit_rows, temperatures, nuclei, st.floats(0, 1, exclude_max=True))
def test_pick_is_the_inverse_of_the_cumulative_distribution(
    logits: Floats, scale: float, top_p: float | None, u: float
) -> None:
    settings = settings_for("entropy", scale, top_p, None)
    weights = weigh(*cut(logits, scale, V), scale, settings)
    p = np.sort(filtered(logits.copy(), scale, top_p, None))[0, ::-1]
    column, exact = pick(weights, np.asarray([u]))
    sums = np.concatenate([[0.0], np.cumsum(p)])
    assert exact[0] and p[column[0]] > 0
    assert sums[column[0]] - 1e-12 <= u <= sums[column[0] + 1] + 1e-12


@example(np.arange(9.0)[None] / 8, 1.0, None, 2)  # where a product rounds up to the whole mass
@given(logit_rows, temperatures, nuclei, st.integers(2, V))
def test_pick_stays_among_the_kept_at_the_edges(
    logits: Floats, scale: float, top_p: float | None, count: int
) -> None:
    """The largest numbers, and those next to the mass of the K, where a quotient rounds to 1."""
    weights = weigh(*cut(logits, scale, count), scale, settings_for("entropy", scale, top_p, None))
    total = weights.kept.sum(1)
    inside = np.minimum(total / (total + weights.tail), np.nextafter(1, 0))
    for u in (np.nextafter(inside, 0), inside, np.nextafter(np.ones(1), 0)):
        column, _ = pick(weights, u)
        assert weights.kept[0, column[0]] > 0


@settings(deadline=None)
@given(logit_rows, temperatures, nuclei)
def test_odds_and_entropy_are_those_of_the_distribution(
    logits: Floats, scale: float, top_p: float | None
) -> None:
    settings = settings_for("entropy", scale, top_p, None)
    weights = weigh(*cut(logits, scale, V), scale, settings)
    p = np.sort(filtered(logits.copy(), scale, top_p, None))[:, ::-1]
    for column in range(int((p > 0).sum())):
        odds = odds_against(weights, np.asarray([column]))[0]
        assert np.isclose(1 / (1 + odds), p[0, column], rtol=1e-12)
    got, exact = entropy(weights)
    assert exact.all()
    assert np.isclose(got[0], -(p * np.log(np.where(p > 0, p, 1))).sum(), rtol=1e-9, atol=1e-12)


def test_entropy_beyond_k_is_a_lower_bound_and_is_told() -> None:
    logits = np.zeros((1, V))
    some, exact = entropy(weigh(*cut(logits, 1.0, 4), 1.0, settings_for("entropy", 1, None, None)))
    assert not exact[0]
    assert np.isclose(some[0], np.log(V))  # equal logits: the bound is met


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_leave_the_best(broken: float) -> None:
    settings = settings_for("entropy", 1, 0.9, None)
    weights = weigh(np.full((1, 4), broken), np.full(1, np.nan), 1.0, settings)
    column, _ = pick(weights, np.asarray([0.999]))
    assert column.tolist() == [0]


@settings(deadline=None)
@given(logit_rows, temperatures, nuclei, st.integers(0, 99))
def test_block_samplers_keep_the_plain_confidence_of_what_they_drew(
    logits: Floats, scale: float, top_p: float | None, seed: int
) -> None:
    settings = settings_for("low-confidence", scale, top_p, None)
    found = {n: a[None] for n, a in reduce(logits, np.zeros(V), scale).items()}
    rngs = [np.random.Generator(np.random.PCG64(seed))]
    got = candidates(found, np.ones((1, 1), bool), FACTS, settings, rngs)
    assert np.isclose(1 / (1 + got.doubt[0]), softmax(logits)[0, got.ids[0]], rtol=1e-12)


@settings(deadline=None)
@given(logit_rows, st.sampled_from([0.0, 0.7]), st.sampled_from([0.3, 0.9]), st.integers(0, 99))
def test_canvas_samplers_take_the_filtered_confidence(
    logits: Floats, temperature: float, top_p: float, seed: int
) -> None:
    scale = temperature or 1.0
    p = filtered(logits.copy(), scale, top_p, None)
    best = np.sort(p[0])[::-1]
    found = {n: a[None] for n, a in reduce(logits, np.zeros(V), scale).items()}
    for sampler in ("maskgit-plus", "topk-margin", "entropy"):
        rngs = [np.random.Generator(np.random.PCG64(seed))]
        settings = settings_for(sampler, temperature, top_p, None)
        got = candidates(found, np.ones((1, 1), bool), FACTS, settings, rngs)
        want = {
            "maskgit-plus": 1 / p[0, got.ids[0]] - 1,
            "topk-margin": 1 - (best[0] - best[1]),
            "entropy": -(p * np.log(np.where(p > 0, p, 1))).sum(),
        }[sampler]
        assert np.isclose(got.doubt[0], want, rtol=1e-9, atol=1e-12)
        if not temperature:
            assert got.ids[0] == logits[0].argmax()
