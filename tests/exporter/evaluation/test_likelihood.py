"""Likelihoods of the golden model are upstream's, and the estimate is what its formula says."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.evaluation.likelihood import (
    MonteCarlo,
    cross_entropy,
    draw_masks,
    log_likelihood,
    weighted_loss,
)
from exporter.evaluation.raw_logits import Parts, RawLogits, of_bundle, of_model
from exporter.runtime.bundle import read_bundle
from exporter.runtime.session import Ints
from exporter.runtime.session_ort import open_session
from tests.commands import GOLDEN
from tests.exporter.conftest import Golden
from tests.numpy_model import load_numpy_model

CASES = json.loads((GOLDEN / "llada" / "cases.json").read_text())
# fp32 logits are off by 8e-5 at most, upstream's as well as ours (golden/README.md); a difference
# of log sum exp and one logit doubles what the two add up to
NLL_ERROR = 2 * (8e-5 + 8e-5)


def cases(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in CASES if case["kind"] == kind]


def guidance_error(scale: float) -> float:
    """Of u + (s + 1)(c − u), as a multiple of the error of c and u."""
    return 2 * scale + 1


@pytest.mark.parametrize("case", cases("likelihood"))
def test_cross_entropies_are_upstreams(llada: Golden, case: dict[str, Any]) -> None:
    clean = np.array(case["input_ids"])
    masked = np.zeros((1, len(clean)), np.bool_)
    masked[0, case["mask_positions"]] = True
    found = cross_entropy(
        of_model(llada.model),
        case["mask_id"],
        clean,
        case["prompt_length"],
        masked,
        case["cfg_scale"],
    )
    tolerance = NLL_ERROR * guidance_error(case["cfg_scale"])
    assert found == pytest.approx(case["expected"]["nll"], abs=tolerance)
    count = len(case["mask_positions"])
    assert found.sum() == pytest.approx(case["expected"]["nll_sum"], abs=count * tolerance)


@pytest.mark.parametrize("case", cases("likelihood_mc"))
def test_estimates_are_upstreams(llada: Golden, case: dict[str, Any]) -> None:
    """With upstream's draws in place of ours."""
    clean = np.array(case["prompt"] + case["answer"])
    start, scale, logits = len(case["prompt"]), case["cfg_scale"], of_model(llada.model)
    losses = []
    for draw in case["draws"]:
        masked = np.array(draw["noisy_ids"]) == case["mask_id"]
        assert masked[:, start:].mean(1) == pytest.approx(draw["p_mask"])
        losses.append(weighted_loss(logits, case["mask_id"], clean, start, masked, scale))
    # each of the l cross entropies of a row is weighted by L / l
    tolerance = len(case["answer"]) * NLL_ERROR * guidance_error(scale)
    expected = case["expected"]["log_likelihood"]
    assert -np.mean(losses) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_both_sources_of_logits_agree_with_numpy(
    golden_models: dict[str, Golden], float_bundles: dict[str, Path], family: str, scale: float
) -> None:
    """Dream's logits are shifted: the row before a mask predicts it."""
    golden, twin = golden_models[family], load_numpy_model(GOLDEN / family)
    draw = np.random.default_rng(0)
    clean = draw.integers(0, 150, 12)
    masked = np.zeros((3, 12), np.bool_)
    masked[:, 4:] = draw.random((3, 8)) < 0.5
    mask_id = golden.facts.mask_id
    noisy = np.where(masked, mask_id, clean)
    everyone = np.ones(noisy.shape, np.bool_)
    raw = twin.logits(noisy, everyone)
    blind = twin.logits(np.where(np.arange(12) < 4, mask_id, noisy), everyone)
    raw = blind + (scale + 1) * (raw - blind)
    rows, positions = np.nonzero(masked)
    at = raw[rows, positions - 1 if golden.facts.shift else positions]
    expected = np.log(np.exp(at).sum(1)) - at[np.arange(len(at)), clean[positions]]

    bundle = read_bundle(float_bundles[family])
    session = open_session(bundle, False, frozenset({"logits"}), threads=1)
    for logits in (of_model(golden.model), of_bundle(session, bundle.model)):
        found = cross_entropy(logits, mask_id, clean, 4, masked, scale)
        assert found == pytest.approx(expected, abs=NLL_ERROR * guidance_error(scale))


def flat(vocab: int, slices: int) -> RawLogits:
    """A model that thinks all ids equally likely, its vocabulary in slices."""

    def logits(ids: Ints, rows: Ints, positions: Ints) -> Parts:
        which = np.arange(len(rows))
        for part in np.array_split(np.arange(vocab), slices):
            yield which, int(part[0]), np.zeros((len(rows), len(part)))

    return logits


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(2, 30),
    st.sampled_from([(1, 1), (8, 4), (12, 12)]),
)
def test_an_indifferent_model_has_the_likelihood_of_chance(
    prompt: int, answer: int, vocab: int, draws: tuple[int, int]
) -> None:
    """Σ over l masks of ln V, times L / l, is L ln V whatever was masked: no noise is left."""
    ids = [i % vocab for i in range(answer)]
    slices = min(vocab, 3)
    for index in (0, 7):
        found = log_likelihood(
            flat(vocab, slices), vocab, [0] * prompt, ids, MonteCarlo(*draws), index
        )
        assert found.log_likelihood == pytest.approx(-answer * math.log(vocab))
        if draws == (8, 4):
            assert found.error == pytest.approx(0, abs=1e-12 * answer * math.log(vocab))
        else:
            assert found.error is None


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_masks_of_a_batch_are_spread_over_all_ratios(length: int, batch: int, seed: int) -> None:
    masks = draw_masks(length, batch, np.random.default_rng(seed))
    counts = masks.sum(1)
    assert masks.shape == (batch, length)
    assert counts.min() >= 1 and counts.max() <= length
    # one step of the even spread is length / batch: at least one, or at most one, apart
    assert len(set(counts.tolist())) == min(batch, length)


def test_every_place_is_masked_equally_often() -> None:
    draw, n = np.random.default_rng(0), 4000
    masks = np.concatenate([draw_masks(6, 4, draw) for _ in range(n // 4)])
    # a count is uniform in 1 … 6, so a place is masked with probability 3.5 / 6; five standard
    # errors of independent draws, which stratified ones stay below
    assert masks.mean(0) == pytest.approx(3.5 / 6, abs=5 * math.sqrt(0.25 / n))


def test_equal_numbers_draw_equal_masks(llada: Golden) -> None:
    logits, how = of_model(llada.model), MonteCarlo(8, 4)
    args = (logits, 200, [1, 2, 3], [4, 5, 6, 7])
    first = log_likelihood(*args, how, 3)
    assert first == log_likelihood(*args, how, 3)
    assert first != log_likelihood(*args, how, 4)
    assert first != log_likelihood(*args, MonteCarlo(8, 4, seed=1), 3)
    assert first.error is not None and first.error > 0


def test_nothing_to_say_is_certain() -> None:
    found = log_likelihood(flat(5, 1), 5, [1, 2], [], MonteCarlo(), 0)
    assert (found.log_likelihood, found.error) == (0, 0)


@pytest.mark.parametrize(("draws", "batch"), [(0, 1), (4, 0), (5, 2)])
def test_draws_that_do_not_divide_are_refused(draws: int, batch: int) -> None:
    with pytest.raises(ValueError, match=f"{draws} draws .* {batch}"):
        MonteCarlo(draws, batch)
