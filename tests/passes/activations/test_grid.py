"""Activation grids: half a step at most, the granularities, and what is left alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passes.activations.grid import (
    LEAST_SCALE,
    ActivationGrid,
    activation_scales,
    fake_quantize,
    quantize_activations,
)

GRIDS = [
    ActivationGrid(8),
    ActivationGrid(4),
    ActivationGrid(2),
    ActivationGrid(4, "group", 16),
    ActivationGrid(8, "group", 4),
    ActivationGrid(8, "tensor", scale=0.05),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_value(x: Tensor, scales: Tensor) -> Tensor:
    """Scales (..., 1) or (..., groups, 1), repeated to one a value of x (..., in)."""
    if scales.dim() == x.dim():
        return scales.expand(x.shape)
    return scales.expand(*scales.shape[:-1], x.shape[-1] // scales.shape[-2]).flatten(-2)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", [(7, 48), (2, 3, 48), (1, 16), (0, 16)])
def test_codes_are_in_range_and_values_off_by_half_a_step(
    grid: ActivationGrid, shape: tuple[int, ...]
) -> None:
    x = normal(*shape)
    codes, scales = quantize_activations(x, grid)
    assert codes.shape == x.shape
    assert torch.equal(codes, codes.round())
    assert ((codes >= -grid.top - 1) & (codes <= grid.top)).all()
    step = a_value(x, scales)
    inside = x.abs() <= grid.top * step
    # The quotient, the product and the difference round by 2^-24 of at most 128 steps each.
    error = (fake_quantize(x, grid) - x).abs()
    assert (error[inside] <= (step * (0.5 + 3 * 128 * 2**-24))[inside]).all()
    if grid.granularity != "tensor":
        # nothing is clipped: the largest value is the largest code, up to one rounding
        assert (x.abs() <= grid.top * step * (1 + 2**-22)).all()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=32), st.integers(2, 8))
def test_any_token_keeps_within_half_a_step(values: list[float], bits: int) -> None:
    x, grid = torch.tensor(values), ActivationGrid(bits)
    step = activation_scales(x, grid)
    # a token of subnormal values is divided by the least scale: it becomes zero, off by itself
    bound = step * (0.5 + 3 * 128 * 2**-24)
    assert ((fake_quantize(x, grid) - x).abs() <= bound).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_one_group_of_all_channels_is_the_token(bits: int) -> None:
    x = normal(5, 32)
    assert torch.equal(
        fake_quantize(x, ActivationGrid(bits, "group", 32)), fake_quantize(x, ActivationGrid(bits))
    )


def test_groups_are_tokens_of_their_own() -> None:
    x = normal(5, 32)
    parts = [fake_quantize(part, ActivationGrid(4)) for part in x.split(8, dim=1)]
    assert torch.equal(fake_quantize(x, ActivationGrid(4, "group", 8)), torch.cat(parts, 1))


def test_tokens_do_not_see_each_other() -> None:
    x, grid = normal(6, 16), ActivationGrid(4)
    alone = torch.stack([fake_quantize(token, grid) for token in x])
    assert torch.equal(fake_quantize(x, grid), alone)


def test_a_static_scale_is_used_as_it_is() -> None:
    x = torch.tensor([[0.24, -0.26, 100.0, -100.0]])
    grid = ActivationGrid(8, "tensor", scale=0.5)
    codes, scales = quantize_activations(x, grid)
    assert codes.tolist() == [[0, -1, 127, -128]]
    assert scales.tolist() == [[0.5]]
    assert fake_quantize(x, grid).tolist() == [[0, -0.5, 63.5, -64]]


def test_a_clipped_grid_covers_its_share_of_the_largest_value() -> None:
    x = torch.tensor([[10.0, 4.9, -10.0]])
    grid = ActivationGrid(4, clip=0.5)
    codes, scales = quantize_activations(x, grid)
    assert scales.item() == pytest.approx(5 / 7, rel=2**-23)
    assert codes.tolist() == [[7, 7, -8]]


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(3, 8)
    for grid in GRIDS[:3]:
        codes, scales = quantize_activations(x, grid)
        assert not codes.any()
        assert (scales == LEAST_SCALE).all()


def test_signs_do_not_matter_where_nothing_is_clipped() -> None:
    x = normal(9, 32)
    for grid in GRIDS[:5]:
        assert torch.equal(fake_quantize(-x, grid), -fake_quantize(x, grid))


def test_rounding_twice_is_rounding_once() -> None:
    x = normal(9, 32)
    for grid in GRIDS:
        once = fake_quantize(x, grid)
        # The largest value comes back off by two roundings of 2^-24, and with it the scale.
        torch.testing.assert_close(fake_quantize(once, grid), once, rtol=4 * 2**-24, atol=0)


def test_without_a_grid_to_round_to_values_are_the_same_object() -> None:
    x = normal(2, 8)
    assert fake_quantize(x, None) is x
    uncalibrated = ActivationGrid(8, "tensor")
    assert not uncalibrated.ready
    assert fake_quantize(x, uncalibrated) is x
    with pytest.raises(ValueError, match="not calibrated"):
        activation_scales(x, uncalibrated)
    assert all(grid.ready for grid in GRIDS)


def test_impossible_grids_are_refused() -> None:
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"not {bits}"):
            ActivationGrid(bits)
    for clip in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"not {clip}"):
            ActivationGrid(8, clip=clip)
    with pytest.raises(ValueError, match="granularity group"):
        ActivationGrid(8, "group")
    with pytest.raises(ValueError, match="group 8 with granularity token"):
        ActivationGrid(8, "token", 8)
    with pytest.raises(ValueError, match="do not divide 20"):
        fake_quantize(normal(2, 20), ActivationGrid(8, "group", 16))
