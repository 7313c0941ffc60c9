"""Credit from the best K logits is what credit on all logits would be."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.credit import Credits
from exporter.runtime.errors import UserError
from exporter.runtime.plan import Call
from exporter.runtime.session import Bools, Floats, Reductions
from exporter.runtime.settings import Settings
from tests.numpy_model import reduce

V, W = 12, 3
OPTIONS = Settings(sampler="credit", credit_alpha=1.3, credit_beta=0.7, credit_gamma=0.4)


def reductions(logits: Floats, k: int) -> Reductions:
    found = reduce(logits, np.zeros(V), 1.0)
    return {n: a[..., :k] if n.startswith("topk") else a for n, a in found.items()}


def plain(history: list[Floats], opens: list[Bools], options: Settings) -> Floats:
    """Fused probabilities (B, W, V) of the last of some calls, on a state of the whole vocabulary.

    dInfer's order: decay, then the credit of this call, then the logits.
    """
    credit = np.zeros_like(history[0])
    for logits, open_ in zip(history, opens, strict=True):
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        best = p.argmax(-1)[..., None]
        credit = np.where(open_[..., None], credit * options.credit_beta, credit)
        more = np.where(open_[..., None], p.max(-1, keepdims=True) ** options.credit_gamma, 0.0)
        np.put_along_axis(credit, best, np.take_along_axis(credit, best, -1) + more, -1)
    fused = np.exp(history[-1] + options.credit_alpha * np.log1p(credit))
    return np.asarray(fused / fused.sum(-1, keepdims=True))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.sampled_from([4, 8, V]))
def test_the_best_token_and_its_odds_are_those_of_all_logits(salt: int, calls: int, k: int) -> None:
    rng = np.random.default_rng(salt)
    history = [rng.normal(0, 2, (2, W, V)) for _ in range(calls)]
    opens = [np.ones((2, W), bool)]
    for _ in range(calls - 1):
        opens.append(opens[-1] & (rng.random((2, W)) < 0.8))
    credits_ = Credits(OPTIONS)
    for logits, open_ in zip(history, opens, strict=True):
        fused, unknown = credits_.fuse(reductions(logits, k), Call(open_), np.arange(W))
    p, open_ = plain(history, opens, OPTIONS), opens[-1]
    if not unknown:
        assert np.array_equal(fused["id1"][open_], p.argmax(-1)[open_])
        # a few products and sums of numbers up to e^20 in float64
        assert np.allclose(1 / (1 + fused["rest"][open_]), p.max(-1)[open_], rtol=1e-9)
    else:
        assert k < V
    raw = reductions(history[-1], k)
    for name in ("id1", "rest"):
        assert np.array_equal(fused[name][~open_], raw[name][~open_])


def test_a_token_beyond_the_best_k_is_passed_over_and_counted() -> None:
    first, then = np.zeros((1, 1, V)), np.zeros((1, 1, V))
    first[..., 5], then[..., :3] = 4.0, [2.0, 1.5, 1.2]
    credits_, call = Credits(OPTIONS), Call(np.ones((1, 1), bool))
    assert credits_.fuse(reductions(first, 2), call, np.arange(1))[1] == 0
    fused, unknown = credits_.fuse(reductions(then, 2), call, np.arange(1))
    assert unknown == 1
    p = plain([first, then], [call.open, call.open], OPTIONS)[0, 0]
    assert fused["id1"][0, 0] == 0
    # the mass that it is taken to have is at most too small by its gain over the last of the K
    gain = np.exp(1.5) * ((1 + OPTIONS.credit_beta) ** OPTIONS.credit_alpha - 1)
    got = 1 / (1 + fused["rest"][0, 0])
    assert p[0] <= got <= p[0] * (1 + gain / np.exp(2.0))


def test_another_block_starts_anew() -> None:
    logits = np.zeros((1, 1, V))
    logits[..., 5] = 2.0
    credits_, call = Credits(OPTIONS), Call(np.ones((1, 1), bool))
    rests = []
    for block in (0, 0, 1):
        found, _ = credits_.fuse(reductions(logits, V), replace(call, block=block), np.arange(1))
        rests.append(float(found["rest"][0, 0]))
    assert rests[0] == rests[2] > rests[1]


def test_a_seed_and_unknown_odds_have_no_credit() -> None:
    found = reductions(np.random.default_rng(0).normal(size=(1, 1, V)), V)
    credits_, call = Credits(OPTIONS), Call(np.ones((1, 1), bool))
    assert credits_.fuse(found, replace(call, seeds=True), np.arange(1))[0] is found
    broken = {**found, "rest": np.asarray([[np.nan]])}
    got, _ = credits_.fuse(broken, call, np.arange(1))
    assert got["rest"][0, 0] == np.inf and got["id1"] == found["id1"]


def test_draws_are_refused() -> None:
    with pytest.raises(UserError, match="works at temperature 0"):
        Settings(sampler="credit", temperature=0.5)
