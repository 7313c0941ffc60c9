"""Reductions of sliced logits against a softmax over all of them."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from exporter.reductions import SUPPRESSED, Reductions
from exporter.runtime.session import Array

EPS = float(np.finfo(np.float64).eps)
NAMES = {"id1", "l1", "rest", "entropy", "rest_t", "l_held"}
SAMPLE = {"l2", "topk_ids", "topk_logits"}


def held_ids(logits: Array) -> Array:
    """Any id for each row."""
    rows, vocab = logits.shape
    return np.asarray(np.random.default_rng(rows).integers(0, vocab, rows))


def direct(logits: Array, bias: Array, temperature: float, top_k: int) -> dict[str, Array]:
    """The definitions: odds d_j = l_j − l_1 + b_j, where the best has d_1 = 0."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    best = np.take_along_axis(logits, order, -1)
    d = logits - best[:, :1] + bias
    np.put_along_axis(d, order[:, :1], 0.0, -1)
    p = np.exp(d) / np.exp(d).sum(-1, keepdims=True)
    others = np.exp(d), np.exp(d / temperature)
    for odds in others:
        np.put_along_axis(odds, order[:, :1], 0.0, -1)
    return {
        "id1": order[:, 0],
        "l1": best[:, 0],
        "l2": best[:, 1],
        "rest": others[0].sum(-1),
        "rest_t": others[1].sum(-1),
        "entropy": -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1),
        "topk_ids": order[:, :top_k],
        "topk_logits": best[:, :top_k],
        "l_held": logits[np.arange(len(logits)), held_ids(logits)],
    }


def sliced(
    logits: Array, bias: Array, temperature: float, top_k: int, cuts: list[int]
) -> dict[str, Array]:
    """The same, from slices of the vocabulary that end at `cuts` and at its end."""
    reductions = Reductions(top_k, temperature, torch.from_numpy(held_ids(logits)))
    edges = [0, *sorted(set(cuts) - {0, logits.shape[1]}), logits.shape[1]]
    for start, stop in pairwise(edges):
        part = torch.from_numpy(logits[:, start:stop].copy())
        reductions.add(start, part, torch.from_numpy(bias[start:stop].copy()))
    return reductions.results()


@dataclass(frozen=True)
class Problem:
    logits: Array  # (N, V)
    bias: Array  # (V,)
    temperature: float
    top_k: int
    cuts: list[int]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Logits over a wide range, or few different ones with many ties; some ids suppressed."""
    rows, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    wide = st.floats(-60, 60, width=32)
    value = draw(st.sampled_from([wide, st.sampled_from([0.0, 1.0, 2.0])]))
    logits = draw(arrays.arrays(np.float64, (rows, vocab), elements=value))
    suppressed = draw(st.sets(st.integers(1, vocab - 1), max_size=vocab - 2))
    logits[:, sorted(suppressed)] += SUPPRESSED
    bias = np.zeros(vocab)
    for token in draw(st.sets(st.integers(0, vocab - 1), max_size=3)):
        bias[token] = draw(st.sampled_from([SUPPRESSED, -2.0, 0.5]))
    return Problem(
        logits,
        bias,
        draw(st.floats(0.2, 4)),
        draw(st.integers(2, vocab)),
        draw(st.lists(st.integers(0, vocab), max_size=6)),
    )


@settings(deadline=None)
@given(problems())
def test_slices_equal_a_direct_softmax(problem: Problem) -> None:
    logits, bias, t, top_k = problem.logits, problem.bias, problem.temperature, problem.top_k
    got = sliced(logits, bias, t, top_k, problem.cuts)
    want = direct(logits, bias, t, top_k)
    assert got.keys() == NAMES | SAMPLE
    for name in ("id1", "l1", "l2", "l_held", "topk_ids", "topk_logits"):  # nothing is computed
        assert np.array_equal(got[name], want[name]), name
    # exponents up to 120 / T are off by eps times their size where they count, sums by V eps
    exponent = 128 / min(t, 1.0)
    relative = (exponent + 2 * logits.shape[1]) * EPS
    for name in ("rest", "rest_t"):
        assert np.allclose(got[name], want[name], rtol=2 * relative, atol=1e-300), name
    # p d with d up to 120, over all ids
    assert np.abs(got["entropy"] - want["entropy"]).max() <= 8 * 128 * logits.shape[1] * EPS


def test_one_slice_gives_what_many_give() -> None:
    draw = np.random.default_rng(0)
    logits, bias = 10 * draw.standard_normal((5, 300)), np.zeros(300)
    whole = sliced(logits, bias, 0.7, 64, [])
    for size in (1, 7, 64, 299):
        parts = sliced(logits, bias, 0.7, 64, list(range(0, 300, size)))
        for name in whole:
            assert np.allclose(parts[name], whole[name], rtol=1000 * EPS, atol=0), (name, size)


@pytest.mark.parametrize("cuts", [[], [2], [1, 2, 3, 4, 5]])
def test_the_lowest_id_wins_a_tie(cuts: list[int]) -> None:
    logits = np.asarray([[1.0, 3.0, 2.0, 3.0, 3.0, 2.0], [0.0] * 6])
    found = sliced(logits, np.zeros(6), 1.0, 5, cuts)
    assert found["id1"].tolist() == [1, 0]
    assert found["topk_ids"].tolist() == [[1, 3, 4, 2, 5], [0, 1, 2, 3, 4]]
    assert found["l2"].tolist() == [3.0, 0.0]
    assert np.allclose(found["rest"], [2 + 2 * np.exp(-1) + np.exp(-2), 5.0], rtol=8 * EPS)


@pytest.mark.parametrize("cuts", [[], [1], [2], [1, 2]])
def test_a_bias_on_odds_does_not_change_the_choice(cuts: list[int]) -> None:
    """It counts for an id that did not win, and not for the one that did."""
    logits = np.asarray([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    bias = np.asarray([-1.0, 0.0, 0.0])
    found = sliced(logits, bias, 2.0, 3, cuts)
    assert found["id1"].tolist() == [0, 2]
    assert found["l1"].tolist() == [3.0, 3.0]
    odds = np.asarray([[-1.0, -2.0], [-3.0, -1.0]])
    assert np.allclose(found["rest"], np.exp(odds).sum(1), rtol=8 * EPS)
    assert np.allclose(found["rest_t"], np.exp(odds / 2).sum(1), rtol=8 * EPS)


def test_a_suppressed_id_has_no_odds() -> None:
    logits = np.asarray([[5.0 + SUPPRESSED, 1.0, 0.0]])
    found = sliced(logits, np.zeros(3), 1.0, 3, [])
    assert found["id1"].tolist() == [1]
    assert np.allclose(found["rest"], np.exp(-1.0), rtol=8 * EPS)
    assert np.exp(np.float32(SUPPRESSED)) == 0


def test_a_sure_token_keeps_its_odds() -> None:
    """Where a probability in float64 is 1, the odds against it still tell who is surer."""
    logits = np.asarray([[50.0, 0.0], [60.0, 0.0]])
    rest = sliced(logits, np.zeros(2), 1.0, 0, [1])["rest"]
    assert np.all(1 / (1 + rest) == 1)
    assert rest[0] > rest[1] > 0


def test_no_top_is_kept_unasked() -> None:
    assert sliced(np.zeros((1, 3)), np.zeros(3), 1.0, 0, []).keys() == NAMES
