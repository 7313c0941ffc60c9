"""CGQ: the published table of weights, normalization, padding, and the three readings."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from passes.calibrate.cgq import Cgq, VisibleScore, token_weight
from passes.calibrate.states import CalibrationSet, State

IS_MASK = torch.tensor([True, True, False, False])
SCORE = torch.tensor([1.0, 0.0, 1.0, 0.0])
VALID = torch.ones(4, dtype=torch.bool)


def state() -> State:
    return State(
        ids=torch.tensor([9, 9, 5, 6]),
        is_mask=IS_MASK,
        valid=VALID,
        prompt=3,
        block=0,
        step=2,
        mask_ratio=0.5,
        score=SCORE,
        commit_score=torch.tensor([0.0, 0.0, 0.25, 1.0]),
    )


def test_squared_weights_are_in_the_published_proportions() -> None:
    mass = token_weight(IS_MASK, SCORE, VALID).double().square()
    expected = torch.tensor([4.00, 1.00, 2.89, 0.49], dtype=torch.float64)
    # one rounding of w to fp32 is 2^-24 of it, two of w^2, and the same for the divisor
    torch.testing.assert_close(mass / mass[1], expected, rtol=4 * 2**-24, atol=0)


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=64
    ).filter(lambda tokens: any(valid for _, _, valid in tokens)),
    st.sampled_from(["model", "commit", "zero"]),
)
def test_mean_squared_weight_is_one_and_padding_weighs_nothing(
    tokens: list[tuple[bool, float, bool]], rule: VisibleScore
) -> None:
    is_mask, score, valid = (torch.tensor(column) for column in zip(*tokens, strict=True))
    w = token_weight(is_mask, score, valid, visible_score=rule, commit_score=1 - score)
    assert w.dtype == torch.float32
    assert (w[~valid] == 0).all()
    assert abs(float(w[valid].double().square().mean()) - 1) < 1e-6


def test_padding_has_no_say_whatever_it_holds() -> None:
    padded = token_weight(
        torch.tensor([True, *IS_MASK.tolist()]),
        torch.tensor([float("nan"), *SCORE.tolist()]),
        torch.tensor([False, *VALID.tolist()]),
    )
    assert padded.tolist() == [0, *token_weight(IS_MASK, SCORE, VALID).tolist()]


def test_equal_weights_are_exactly_one() -> None:
    for count in range(1, 50):
        valid = torch.arange(50) < count
        w = token_weight(valid, torch.full((50,), 0.3), valid)
        assert torch.equal(w, valid.float())


@pytest.mark.parametrize(
    ("rule", "visible"), [("model", [1.7, 0.7]), ("commit", [1.2, 1.7]), ("zero", [0.7, 0.7])]
)
def test_the_rule_changes_visible_tokens_only(rule: VisibleScore, visible: list[float]) -> None:
    w = token_weight(IS_MASK, SCORE, VALID, 1.0, 0.7, rule, state().commit_score)
    expected = torch.tensor([2.0, 1.0, *visible])
    torch.testing.assert_close(w / w[1], expected, rtol=4 * 2**-24, atol=0)


def test_the_pass_weighs_every_state() -> None:
    calibration = CalibrationSet([state(), state()], provenance="x", counts={})
    stats = Cgq(visible_score="zero")(calibration)
    expected = token_weight(IS_MASK, SCORE, VALID, visible_score="zero")
    assert all(torch.equal(weight, expected) for weight in calibration.weights)
    assert stats["states"] == 2
    assert stats["masked_share"] == pytest.approx(5 / 5.98, rel=1e-6)  # (4 + 1) / (5 + 2 * .49)
    assert stats["largest_weight"] == float(expected.max())


def test_missing_scores_are_named() -> None:
    with pytest.raises(ValueError, match="prompt 3, step 2 has no score"):
        Cgq()(CalibrationSet([replace(state(), score=None)], provenance="x", counts={}))
    with pytest.raises(ValueError, match="needs the commit scores"):
        token_weight(IS_MASK, SCORE, VALID, visible_score="commit")
    with pytest.raises(ValueError, match="1 valid tokens have no score"):
        token_weight(IS_MASK, torch.tensor([1.0, float("nan"), 0, 0]), VALID)
    with pytest.raises(ValueError, match="0 of 4 are valid"):
        token_weight(IS_MASK, SCORE, ~VALID)
    with pytest.raises(ValueError, match="must not be negative"):
        Cgq(visible=-0.1)
