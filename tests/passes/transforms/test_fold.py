"""Folding scales: the block computes what it did, on inputs that are divided by them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from passes.transforms.fold import fold_scale, is_linear, tie
from tests.toy_block import ToyBlock, outputs_of, rounding_bound

SHAPES = [(4, False), (2, True), (1, True), (2, False)]  # kv heads (of 4 heads), biases


def inputs_of(block: ToyBlock, index: int) -> Tensor:
    return torch.cat([x[w != 0] for x, w in block.inputs(block.groups[index])])


def random_scales(block: ToyBlock, index: int, power_of_two: bool) -> Tensor:
    group = block.groups[index]
    draw = torch.Generator().manual_seed(index)
    width = block.weight(group.linears[0]).shape[1]
    exponents = torch.randint(-4, 5, (width,), generator=draw).float()
    if not power_of_two:
        exponents += torch.rand(width, generator=draw)
    return tie(block, group, 2**exponents)


@pytest.mark.parametrize(("kv_heads", "biases"), SHAPES)
def test_powers_of_two_change_no_bit_of_the_output(kv_heads: int, biases: bool) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=biases)
    before = outputs_of(block)
    for index, group in enumerate(block.groups):
        x, s = inputs_of(block, index), random_scales(block, index, power_of_two=True)
        fold_scale(block, group, s)
        assert torch.equal(inputs_of(block, index), x / s)
        assert torch.equal(outputs_of(block), before)


@pytest.mark.parametrize(("kv_heads", "biases"), SHAPES)
def test_other_scales_leave_the_function(kv_heads: int, biases: bool) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=biases)
    before, bound = outputs_of(block), rounding_bound(block)
    for index, group in enumerate(block.groups):
        fold_scale(block, group, random_scales(block, index, power_of_two=False))
    assert (outputs_of(block) - before).abs().max() <= bound


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_that_share_values_get_their_largest(kv_heads: int) -> None:
    block = ToyBlock(kv_heads=kv_heads)
    group = block.groups[1]
    statistic = torch.rand(32, generator=torch.Generator().manual_seed(0))
    tied = tie(block, group, statistic)
    for head in range(4):
        first = head * kv_heads // 4 * (4 // kv_heads)  # of the heads that read the same values
        sharers = statistic.view(4, 8)[first : first + 4 // kv_heads]
        assert torch.equal(tied.view(4, 8)[head], sharers.amax(0))
    if kv_heads == 4:
        assert torch.equal(tied, statistic)


def test_only_linears_are_linears(toy_block: type[ToyBlock]) -> None:
    sources = [group.source for group in toy_block().groups]
    assert [is_linear(toy_block(), name) for name in sources] == [False, True, False, True]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_scales_are_refused(bad: float) -> None:
    block = ToyBlock()
    s = torch.ones(40)
    s[3] = bad
    with pytest.raises(ValueError, match="positive and finite"):
        fold_scale(block, block.groups[0], s)


def test_scales_that_cannot_be_folded_are_refused() -> None:
    block = ToyBlock(kv_heads=2)
    with pytest.raises(ValueError, match="heads that share values differ"):
        fold_scale(block, block.groups[1], torch.linspace(1, 2, 32))
    with pytest.raises(ValueError, match="no `conv` to fold"):
        fold_scale(block, replace(block.groups[0], source="conv"), torch.ones(40))
