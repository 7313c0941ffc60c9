"""Rounding to nearest: every linear once, with the settings of the pass."""

import pytest
import torch

from passes.numerics import QuantizedLinear, WeightGrid, expand, largest_code
from passes.weights.rtn import Rtn, round_to_nearest, weight_error
from tests.toy_block import ToyBlock

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")

GRIDS = [
    WeightGrid(4, 32),
    WeightGrid(3, 16, clip=True),
    WeightGrid(8),
    WeightGrid(4, 16, levels=2),
    WeightGrid(3, 16, levels=2, clip=True),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_linear_is_replaced(toy_block: type[ToyBlock], grid: WeightGrid) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    before = toy_block()
    stats = Rtn()(toy_block(replaced, grid=grid))
    errors = []
    for linear in LINEARS:
        weight = before.weight(linear)
        expected = round_to_nearest(weight, grid)
        assert torch.equal(replaced[linear].codes, expected.codes)
        assert torch.equal(replaced[linear].scales, expected.scales)
        errors.append(weight_error(weight, expected))
    assert stats["linears"] == len(replaced) == 7
    assert stats["weight_error"] == pytest.approx(sum(errors) / 7)
    assert stats["worst_weight_error"] == max(errors)


def test_groups_without_a_grid_stay_float(toy_block: type[ToyBlock]) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    stats = Rtn()(toy_block(replaced, grid=None))
    assert (replaced, stats["linears"], stats["weight_error"]) == ({}, 0, 0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_weight_takes_the_nearest_value_of_its_grid(grid: WeightGrid) -> None:
    w = torch.randn(6, 80, generator=torch.Generator().manual_seed(2))
    quantized = round_to_nearest(w, grid)
    step = expand(quantized.scales, quantized.group, 80)
    values = torch.arange(grid.least, largest_code(grid.bits) + 1) * step[..., None]
    nearest = (values - w[..., None]).abs().amin(-1)
    # The quotient by the step is rounded to fp32: a weight halfway may go to either side.
    assert ((quantized.dequantize() - w).abs() <= nearest + step * 128 * 2**-23).all()


def test_weight_error_is_relative() -> None:
    w = torch.tensor([[7.0, 3.5, 0.0, 1.0]])  # scale 1: only 3.5 is off the grid, by a half
    assert weight_error(w, round_to_nearest(w, WeightGrid(4))) == pytest.approx(
        0.25 / (49 + 12.25 + 1)
    )
    assert weight_error(w * 0, round_to_nearest(w * 0, WeightGrid(4))) == 0.0


def test_more_bits_never_hurt() -> None:
    w = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    for group in (32, None):
        grids = [WeightGrid(bits, group) for bits in (2, 3, 4, 5, 6, 7, 8)]
        errors = [weight_error(w, round_to_nearest(w, grid)) for grid in grids]
        assert errors == sorted(errors, reverse=True)
