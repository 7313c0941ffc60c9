"""QuantEase: it never gets worse, it ends where no single step helps, and it needs no inverse."""

from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor

from passes.numerics import QuantizedLinear, WeightGrid, expand
from passes.weights.gptq import Gptq, solve
from passes.weights.hessian import accumulate_hessian, factorize, quadratic
from passes.weights.quantease import QuantEase, descend
from passes.weights.rtn import round_to_nearest
from tests.toy_block import ToyBlock

GRIDS = [
    WeightGrid(4, 32),
    WeightGrid(3),
    WeightGrid(2, 7, clip=True),  # ragged: 100 columns
    WeightGrid(4, 32, levels=2),
    WeightGrid(3, 48, levels=2, clip=True),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def problem(width: int = 100, tokens: int = 600) -> tuple[Tensor, Tensor]:
    """A weight (24, width) and the Hessian of correlated inputs."""
    decay = torch.exp(-torch.arange(width) / (width / 6))
    x = normal(tokens, width) @ (normal(width, width, seed=1) * decay).T
    hessian = torch.zeros(width, width)
    accumulate_hessian(hessian, x, torch.ones(tokens))
    return normal(24, width, seed=2), hessian


def loss(weight: Tensor, found: QuantizedLinear, hessian: Tensor) -> float:
    return quadratic((weight - found.dequantize()).double(), hessian.double())


def starts(weight: Tensor, hessian: Tensor, grid: WeightGrid) -> list[QuantizedLinear]:
    factor = factorize(hessian, 0.01, act_order=False)
    return [round_to_nearest(weight, grid), solve(weight, factor, grid)]


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_sweep_makes_the_error_larger(grid: WeightGrid, block: int) -> None:
    weight, hessian = problem()
    for first in starts(weight, hessian, grid):
        losses, found = [loss(weight, first, hessian)], first
        for _ in range(6):
            found = descend(weight, found, hessian, grid, 1, block)
            losses.append(loss(weight, found, hessian))
        # A step on an exact tie may go to either side: it moves the error by what fp32 loses in the
        # slope, a sum of 100 products, 2400 times a sweep.
        slack = 100 * 2**-24 * losses[0]
        assert all(after <= before + slack for before, after in pairwise(losses))
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_in_the_end_no_single_step_helps(grid: WeightGrid) -> None:
    weight, hessian = problem()
    found = descend(weight, round_to_nearest(weight, grid), hessian, grid, 200)
    left = (weight - found.dequantize()).double()
    slope, step = left @ hessian.double(), expand(found.scales, found.group, 100).double()
    for move in (-1, 1):
        inside = (found.codes + move >= grid.least) & (found.codes + move <= -grid.least - 1)
        # d -> d - step changes d H d^T by -2 step slope + step^2 H_jj
        change = -2 * move * step * slope + step.square() * hessian.diagonal().double()
        slack = 1e-5 * step.square() * hessian.diagonal().double()  # ties, in fp32
        assert (change + slack)[inside].min() >= 0


def test_sweeps_in_blocks_are_the_sweeps_of_single_columns() -> None:
    weight, hessian = problem()
    first = round_to_nearest(weight, GRIDS[0])
    ours = descend(weight, first, hessian, GRIDS[0], 1, block=128)
    codes, scales = first.codes.double(), expand(first.scales, 32, 100).double()
    h = hessian.double()
    for j in range(100):  # the paper's Algorithm 1, in fp64
        left = weight.double() - codes * scales
        best = codes[:, j] * scales[:, j] + left @ h[:, j] / h[j, j]
        codes[:, j] = (best / scales[:, j]).round().clamp(-8, 7)
    # a value next to a rounding boundary may fall to either side in fp32 and fp64: one row or two
    assert (ours.codes == codes).all(1).sum() >= 22


def test_uncoupled_columns_are_rounded_to_nearest() -> None:
    weight = normal(8, 64)
    for grid in (WeightGrid(4, 32), WeightGrid(4, 32, levels=2)):
        nearest = round_to_nearest(weight, grid)
        for hessian in (torch.eye(64), torch.linspace(1, 9, 64).diag()):
            shifted = QuantizedLinear(
                (nearest.codes - 1).clamp(min=grid.least), nearest.scales, 4, 32, nearest.channel
            )
            found = descend(weight, shifted, hessian, grid, 2)
            assert torch.equal(found.codes, nearest.codes)


def test_columns_without_a_token_stay_as_they_started() -> None:
    weight, hessian = problem()
    hessian[:, 96:] = hessian[96:] = 0  # all of the last group
    first = round_to_nearest(weight, GRIDS[0])
    found = descend(weight, first, hessian, GRIDS[0], 3)
    assert torch.equal(found.codes[:, 96:], first.codes[:, 96:])
    rest = round_to_nearest(weight[:, :96], GRIDS[0])
    alive = descend(weight[:, :96], rest, hessian[:96, :96], GRIDS[0], 3)
    assert (found.codes[:, :96] == alive.codes).all(1).sum() >= 22  # see above


def test_the_start_is_left_as_it_is_and_its_scales_are_kept() -> None:
    weight, hessian = problem()
    first = round_to_nearest(weight, GRIDS[3])
    codes = first.codes.clone()
    found = descend(weight, first, hessian, GRIDS[3], 2)
    assert torch.equal(first.codes, codes)
    assert torch.equal(found.scales, first.scales)
    assert found.channel is not None
    assert torch.equal(found.int8() * found.channel, found.dequantize())
    assert torch.equal(descend(weight, first, hessian, GRIDS[3], 0).codes, first.codes)


def test_sweeps_end_once_nothing_changes() -> None:
    weight, hessian = problem()
    first = round_to_nearest(weight, GRIDS[0])
    done = descend(weight, first, hessian, GRIDS[0], 200)
    assert torch.equal(descend(weight, done, hessian, GRIDS[0], 5).codes, done.codes)


def test_the_pass_does_better_than_its_start(toy_block: type[ToyBlock]) -> None:
    gptq = Gptq()(toy_block())
    before: dict[Literal["rtn", "gptq"], float]
    before = {"rtn": gptq["rtn_error"], "gptq": gptq["error"]}
    for start, error in before.items():
        assert QuantEase(start=start)(toy_block())["error"] < error


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        QuantEase(iterations=-1)
    with pytest.raises(ValueError, match="must be positive"):
        QuantEase(damping=0.0)
    with pytest.raises(ValueError, match="must be positive"):
        QuantEase(block=0)
