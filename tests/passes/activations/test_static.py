"""Static scales: the largest value, a share of the values, or the least error."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from passes.activations.grid import ActivationGrid, fake_quantize
from passes.activations.static import BINS, CLIPS, StaticScales
from passes.base import LinearGroup, Stats, Team
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock

STATIC = ActivationGrid(8, "tensor")
Cover = Literal["max", "mse"] | float


def values(block: ToyBlock, group: LinearGroup) -> Iterator[tuple[Tensor, Tensor]]:
    for x, w in block.inputs(group):
        yield x[w > 0], w[w > 0]


def everything(block: ToyBlock, group: LinearGroup) -> Tensor:
    return torch.cat([x for x, _ in values(block, group)])


def scales(block: ToyBlock) -> list[float]:
    found = [group.activation for group in block.groups]
    assert all(grid is not None and grid.scale is not None and grid.ready for grid in found)
    return [grid.scale for grid in found if grid is not None and grid.scale is not None]


@pytest.mark.parametrize("clip", [1.0, 0.5])
def test_the_largest_value_is_the_largest_code(toy_block: type[ToyBlock], clip: float) -> None:
    block = toy_block(activation=replace(STATIC, clip=clip))
    stats = StaticScales()(block)
    for group, scale in zip(block.groups, scales(block), strict=True):
        # Behind the groups that were calibrated before it; what comes after changes nothing.
        largest = float(everything(block, group).abs().max())
        assert scale == pytest.approx(clip * largest / 127, rel=2 * 2**-24)
        assert scale == float(torch.tensor(scale, dtype=torch.float32))
    assert (stats["groups"], stats["covered"]) == (4, clip)


def test_later_groups_see_the_rounded_earlier_ones(toy_block: type[ToyBlock]) -> None:
    block = toy_block(activation=ActivationGrid(2, "tensor"))
    float_largest = float(everything(toy_block(), block.groups[3]).abs().max())
    StaticScales()(block)
    assert scales(block)[3] != pytest.approx(float_largest, rel=1e-3)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999, 1.0])
def test_a_share_of_the_values_is_covered_and_no_more(
    toy_block: type[ToyBlock], share: float
) -> None:
    block = toy_block(activation=STATIC)
    StaticScales(share)(block)
    for group, scale in zip(block.groups, scales(block), strict=True):
        x = everything(block, group).abs().flatten()
        reach, bin_width = 127 * scale, float(x.max()) / BINS
        slack = bin_width * 0.01  # fp32, where a value next to the edge of a bin may fall
        assert (x <= reach + slack).double().mean() >= share
        assert (x < reach - bin_width - slack).double().mean() < share


@pytest.mark.parametrize("bits", [3, 8])
def test_mse_takes_the_best_clip(toy_block: type[ToyBlock], bits: int) -> None:
    block = toy_block(activation=ActivationGrid(bits, "tensor"), weigh=True)
    stats = StaticScales("mse")(block)
    shares = []
    for group, scale in zip(block.groups, scales(block), strict=True):
        grid, largest = ActivationGrid(bits, "tensor"), 0.0
        largest = float(everything(block, group).abs().max())

        def loss(scale: float, group: LinearGroup = group, grid: ActivationGrid = grid) -> float:
            static = replace(grid, scale=scale)
            return sum(
                float(((fake_quantize(x, static) - x).double() * w[:, None]).square().sum())
                for x, w in values(block, group)
            )

        candidates = [loss(largest * share / grid.top) for share in CLIPS]
        assert loss(scale) == pytest.approx(min(candidates), rel=1e-5)
        shares.append(scale * grid.top / largest)
    assert stats["covered"] == pytest.approx(sum(shares) / 4, rel=1e-5)
    assert bits == 8 or max(shares) < 1, "with few bits, clipping pays"


@pytest.mark.parametrize("cover", ["max", "mse", 0.99])
def test_padding_changes_nothing(toy_block: type[ToyBlock], cover: Cover) -> None:
    found = []
    for padding in (0.0, float("nan"), 1e9):
        block = toy_block(padding=padding, activation=STATIC)
        StaticScales(cover)(block)
        found.append(scales(block))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("cover", ["max", "mse", 0.99])
def test_several_processes_decide_as_one(toy_block: type[ToyBlock], cover: Cover) -> None:
    def work(team: Team) -> tuple[list[float], Stats]:
        block = toy_block(team=team, activation=STATIC)
        stats = StaticScales(cover)(block)
        return scales(block), stats

    alone = toy_block(activation=STATIC)
    expected = StaticScales(cover)(alone)
    for size in (2, 4):  # the fourth has no states at all
        for found, stats in run_as_team(size, work):
            assert found == scales(alone)
            assert stats == expected


def test_other_grids_are_left_alone(toy_block: type[ToyBlock]) -> None:
    for grid in (None, ActivationGrid(8), ActivationGrid(4, "group", 8)):
        block = toy_block(activation=grid)
        assert StaticScales()(block) == {"groups": 0, "covered": 0, "unseen": 0}
        assert all(group.activation == grid for group in block.groups)


@pytest.mark.parametrize("cover", ["max", "mse", 0.5])
def test_inputs_of_zeros_get_a_scale(toy_block: type[ToyBlock], cover: Cover) -> None:
    block = toy_block(activation=STATIC)
    block.set("v", torch.zeros_like(block.weight("v")))  # so that o sees nothing else
    StaticScales(cover)(block)
    assert scales(block)[1] == 2.0**-24


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        StaticScales(share)
