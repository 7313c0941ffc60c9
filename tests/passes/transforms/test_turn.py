"""Turning the input of a group and its weights together."""

import pytest
import torch

from passes.transforms.online import Permutation, Rotation
from passes.transforms.turn import fed_by, turn
from tests.toy_block import ToyBlock, outputs_of, rounding_bound


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_steps_leave_the_function_in_any_order(kv_heads: int) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=True)
    before, bound = outputs_of(block), rounding_bound(block)
    draw = torch.Generator().manual_seed(0)
    for group in block.groups:
        width = block.weight(group.linears[0]).shape[1]
        order = torch.randperm(width, generator=draw)
        for runs in (8, 4):
            turn(block, group, Permutation(order))
            square = torch.randn(runs, runs, generator=draw, dtype=torch.float64)
            turn(block, group, Rotation(right=torch.linalg.qr(square).Q.float().contiguous()))
    # four matrices on the way of each of four groups
    assert (outputs_of(block) - before).abs().max() <= 4 * bound


def test_a_permutation_moves_inputs_and_columns_and_no_bit() -> None:
    block = ToyBlock()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    x, weight = next(iter(block.inputs(block.groups[3])))[0], block.weight("down")
    turn(block, block.groups[3], Permutation(order))
    assert torch.equal(next(iter(block.inputs(block.groups[3])))[0], x[:, order])
    assert torch.equal(block.weight("down"), weight[:, order])


def test_groups_are_found_by_what_feeds_them() -> None:
    block = ToyBlock()
    names = [fed_by(block, source).name for source in ("attn_norm", "v", "mlp_norm", "up")]
    assert names == [group.name for group in block.groups]
    with pytest.raises(ValueError, match="block 0: no linear reads what `conv` makes"):
        fed_by(block, "conv")
