"""Sensitivity: one group at a time, on the output of the block, which is left as it was."""

import pytest
import torch

from passes.activations.grid import ActivationGrid
from passes.base import Stats, Team
from passes.numerics import WeightGrid
from passes.weights.rtn import Rtn, round_to_nearest
from passes.weights.sensitivity import Sensitivity
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock

GRID = WeightGrid(3, 16)


def error(block: ToyBlock, other: ToyBlock) -> float:
    """Relative squared error of the outputs of `other`, token weights squared."""
    difference = total = 0.0
    for (y, w), (z, _) in zip(block.outputs(), other.outputs(), strict=True):
        y, z = (torch.where(w[:, None] > 0, x, 0) * w[:, None] for x in (y, z))
        difference += float((z - y).double().square().sum())
        total += float(y.double().square().sum())
    return difference / total


@pytest.mark.parametrize("activation", [None, ActivationGrid(8)])
def test_each_group_is_rounded_alone(
    toy_block: type[ToyBlock], activation: ActivationGrid | None
) -> None:
    block = toy_block(weigh=True, activation=activation)
    found = Sensitivity(GRID)(block)
    assert list(found) == [group.name for group in block.groups]
    for group in block.groups:
        other = toy_block(weigh=True, activation=activation)
        for name in group.linears:
            other.set(name, round_to_nearest(other.weight(name), GRID).dequantize())
        assert found[group.name] == pytest.approx(error(block, other), rel=1e-5) != 0


def test_the_block_is_left_as_it_was(toy_block: type[ToyBlock]) -> None:
    block, before = toy_block(), toy_block()
    Sensitivity(GRID)(block)
    assert not block.replaced
    assert all(torch.equal(block.weight(name), before.weight(name)) for name in before.tensors)


def test_more_bits_are_less_sensitive(toy_block: type[ToyBlock]) -> None:
    found = [Sensitivity(WeightGrid(bits, 16))(toy_block()) for bits in (2, 4, 8)]
    for name in found[0]:
        assert found[0][name] > found[1][name] > found[2][name] > 0


def test_a_weight_on_its_grid_costs_nothing(toy_block: type[ToyBlock]) -> None:
    block = toy_block()
    Rtn()(block)  # with the block's own grid
    grid = block.groups[0].grid
    assert grid is not None
    assert set(Sensitivity(grid)(block).values()) == {0.0}


def test_padding_never_matters(toy_block: type[ToyBlock]) -> None:
    clean, dirty = toy_block(), toy_block(padding=float("nan"))
    assert Sensitivity(GRID)(clean) == Sensitivity(GRID)(dirty)


def test_several_processes_find_the_same(toy_block: type[ToyBlock]) -> None:
    def work(team: Team) -> Stats:
        return Sensitivity(GRID)(toy_block(team=team))

    expected = Sensitivity(GRID)(toy_block())
    for size in (2, 4):  # the fourth has no states at all
        found = run_as_team(size, work)
        assert all(stats == pytest.approx(expected, rel=1e-12) for stats in found)
