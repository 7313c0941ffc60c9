"""Grids: error bounds, float16 scales, ragged groups, and equality with what the graph computes."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ort_ops.int4 import dequantize_blocks, pack_int4, unpack_int4
from passes.numerics import (
    CHANNEL_TOP,
    CLIP_NORM,
    SMALLEST_SCALE,
    QuantizedLinear,
    WeightGrid,
    clip_scales,
    covering_scales,
    expand,
    group_count,
    largest_code,
    symmetric_scales,
)
from passes.weights.rtn import round_to_nearest

SHAPES = [(5, 128, 32), (3, 128, 64), (4, 256, 128), (3, 100, 32), (2, 7, 128), (1, 1, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantize_to(w: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    return WeightGrid(bits).round(w, expand(scales, group, w.shape[1])).to(torch.int8)


def quantize(w: Tensor, bits: int, group: int) -> QuantizedLinear:
    scales = symmetric_scales(w, bits, group)
    return QuantizedLinear(quantize_to(w, scales, bits, group), scales, bits, group)


def loss(w: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """The clip search's loss, summed a row; for a single group."""
    codes = quantize_to(w, scales, bits, group)
    rounded = QuantizedLinear(codes, scales, bits, group).dequantize()
    return (rounded - w).abs().pow(CLIP_NORM).sum(-1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_error_is_at_most_half_a_step(bits: int, out: int, width: int, group: int) -> None:
    w = normal(out, width)
    quantized = quantize(w, bits, group)
    step, top = expand(quantized.scales, group, width), largest_code(bits)
    # Rounding the scale to float16 moves it by at most 2^-11, and the end of the grid by as much of
    # the top + 1/2 steps that it is away. The quotient, the product and the difference round by
    # 2^-24 of at most 128 steps each.
    bound = step * (0.5 + (top + 0.5) * 2**-11 + 3 * 128 * 2**-24)
    assert ((quantized.dequantize() - w).abs() <= bound).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_scale_is_the_better_of_two_float16_values(
    bits: int, out: int, width: int, group: int
) -> None:
    w, top = normal(out, width, seed=1), largest_code(bits)
    scales = symmetric_scales(w, bits, group)
    assert scales.shape == (out, -(-width // group))
    for column in range(scales.shape[1]):
        part = w[:, column * group : (column + 1) * group].numpy()
        most, least = np.maximum(part.max(1), 0), np.maximum(-part.min(1), 0)
        errors, steps = [], []
        for slack in (np.float32(0), np.float32(0.5)):
            exact = np.maximum(most / (top + slack), least / (top + 1 + slack))
            steps.append(exact.astype(np.float16).astype(np.float32))
            codes = np.clip(np.rint(part / steps[-1][:, None]), -top - 1, top)
            errors.append(((codes * steps[-1][:, None] - part) ** 2).sum(1))
        expected = np.where(errors[1] < errors[0], steps[1], steps[0])
        close = np.abs(errors[0] - errors[1]) <= 1e-5 * errors[0]  # sums of another order
        assert ((scales[:, column].numpy() == expected) | close).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
@pytest.mark.parametrize("find", [symmetric_scales, clip_scales])
def test_what_is_on_the_grid_stays_there(
    find: Callable[[Tensor, int, int], Tensor], bits: int, out: int, width: int, group: int
) -> None:
    w = normal(out, width, seed=1)
    once = quantize(w, bits, group)
    scales = find(once.dequantize(), bits, group)
    assert torch.equal(scales, once.scales)
    assert torch.equal(quantize_to(once.dequantize(), scales, bits, group), once.codes)


def test_the_sign_of_the_largest_weight_counts() -> None:
    w = torch.tensor([[-8.0, 1.0, 7.0], [8.0, -1.0, -7.0]]).repeat(1, 4)
    assert symmetric_scales(w, bits=4, group=12)[0].item() == 1
    assert symmetric_scales(w, bits=4, group=12)[1].item() > 1


def test_the_finer_scale_pays_for_many_weights_of_few_bits() -> None:
    """Its steps are smaller by top / (top + 1/2); the largest weight is off by half of one."""
    shares = {}
    for bits, group in ((2, 64), (4, 64), (4, 8), (8, 64)):
        w = normal(400, group, seed=9)
        exact, half = (scale.half().float() for scale in covering_scales(w, bits, group))
        assert (half < exact).all()
        shares[bits, group] = float((symmetric_scales(w, bits, group) == half).float().mean())
    assert shares[2, 64] > 0.9
    assert shares[4, 64] > 0.5 > shares[4, 8]
    assert shares[8, 64] < 0.5


def test_codes_use_the_whole_range_and_clip_beyond_it() -> None:
    w = torch.tensor([[-20.0, -8.0, -0.5, 0.5, 1.5, 7.0, 20.0]])
    codes = quantize_to(w, torch.ones(1, 1), bits=4, group=7)
    assert codes.tolist() == [[-8, -8, 0, 0, 2, 7, 7]]  # ties to even


@pytest.mark.parametrize("value", [0.0, 1e-12, 1e-7])
def test_tiny_groups_get_a_positive_scale(value: float) -> None:
    scales = symmetric_scales(torch.full((2, 4), value), bits=4, group=2)
    assert (scales == SMALLEST_SCALE).all()
    assert quantize(torch.full((2, 4), value), 4, 2).dequantize().abs().max() <= value + 2**-24


@pytest.mark.parametrize("value", [7 * 65520.0, float("inf"), float("nan")])
def test_a_scale_beyond_float16_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not a finite float16"):
        symmetric_scales(torch.tensor([[1.0, value]]), bits=4, group=2)
    assert symmetric_scales(torch.tensor([[1.0, 7 * 65500.0]]), 4, 2).item() == 65504


@pytest.mark.parametrize(("bits", "group"), [(1, 4), (9, 4), (4, 0)])
def test_impossible_grids_are_refused(bits: int, group: int) -> None:
    with pytest.raises(ValueError, match=str(bits if group else group)):
        symmetric_scales(torch.ones(1, 8), bits, group)


@pytest.mark.parametrize("bits", [3, 4])
def test_clip_search_finds_the_best_candidate(bits: int) -> None:
    w = normal(8, 64, seed=2)
    w[:4, 0] = 6.0  # an outlier for which clipping pays
    best = clip_scales(w, bits, 64)
    exact, half = covering_scales(w, bits, 64)
    scales = (*(exact * (1 - i / 100) for i in range(80)), half)
    candidates = [scale.half().float() for scale in scales]
    losses = torch.stack([loss(w, scales, bits, 64) for scales in candidates])
    torch.testing.assert_close(loss(w, best, bits, 64), losses.amin(0), rtol=0, atol=0)
    assert (best < exact)[:4].all()


def test_clip_search_keeps_groups_apart() -> None:
    w = normal(3, 50, seed=3)
    parts = [clip_scales(w[:, i : i + 16], 4, 16) for i in range(0, 50, 16)]
    assert torch.equal(clip_scales(w, 4, 16), torch.cat(parts, dim=1))


@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_packed_codes_dequantize_to_exactly_the_fake_quant_weight(
    out: int, width: int, group: int
) -> None:
    quantized = quantize(normal(out, width, seed=4), 4, group)
    codes = quantized.codes.T.numpy()  # ONNX keeps the weight as (in, out)
    stored = unpack_int4(pack_int4(codes), codes.shape)
    scales = quantized.scales.T.numpy().astype(np.float16).astype(np.float32)
    rebuilt = dequantize_blocks(stored, scales, group)
    np.testing.assert_array_equal(rebuilt, quantized.dequantize().T.numpy())


def test_split_inverts_stacking() -> None:
    quantized = quantize(normal(6, 40), 4, 16)
    parts = quantized.split([1, 2, 3])
    assert [len(part.codes) for part in parts] == [1, 2, 3]
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), quantized.dequantize())


def test_inconsistent_quantized_linears_are_refused() -> None:
    codes = torch.zeros(2, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match="do not fit"):
        QuantizedLinear(codes, torch.ones(2, 1), 4, 4)
    for wrong in (0.1, 0.0, -1.0):  # 0.1 is no float16
        with pytest.raises(ValueError, match="positive float16"):
            QuantizedLinear(codes, torch.full((2, 2), wrong), 4, 4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_a_group_the_whole_row_shares_a_scale(bits: int) -> None:
    w = normal(5, 100)
    whole, wide = WeightGrid(bits), WeightGrid(bits, 100)
    assert whole.columns(100) == 100
    found = whole.scales(w, None)
    assert found.shape == (5, 1)
    assert torch.equal(found, wide.scales(w, None))
    assert round_to_nearest(w, whole).group == 100


def test_a_grid_of_one_level_is_the_symmetric_one() -> None:
    w = normal(4, 64)
    for clip, find in ((False, symmetric_scales), (True, clip_scales)):
        grid = WeightGrid(4, 16, clip=clip)
        assert grid.channel(w) is None
        assert torch.equal(grid.scales(w, None), find(w, 4, 16))
    assert (WeightGrid(4).least, WeightGrid(2).least, WeightGrid(8).least) == (-8, -2, -128)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_two_levels_are_whole_multiples_of_the_row_scale(
    bits: int, out: int, width: int, group: int, clip: bool
) -> None:
    w = normal(out, width, seed=5)
    grid = WeightGrid(bits, group, 2, clip)
    quantized = round_to_nearest(w, grid)
    channel, steps, top = quantized.channel, quantized.steps(), largest_code(bits)
    assert channel is not None
    exact = w.abs().amax(1, keepdim=True).numpy() / np.float32(CHANNEL_TOP)
    np.testing.assert_array_equal(channel.numpy(), exact.astype(np.float16))
    assert torch.equal(steps * channel, quantized.scales)
    assert torch.equal(steps, steps.round())
    assert steps.min() >= 1
    assert steps.max() <= 127 // top
    assert grid.least == -top
    assert quantized.codes.abs().max() <= top
    assert (quantized.int8().double() * channel.double() == quantized.dequantize().double()).all()
    assert quantized.int8().abs().max() <= 127


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_two_levels_take_the_better_of_the_least_multiples(
    bits: int, out: int, width: int, group: int
) -> None:
    w, top = normal(out, width, seed=6), largest_code(bits)
    grid = WeightGrid(bits, group, 2)
    quantized = round_to_nearest(w, grid)
    channel = quantized.channel
    assert channel is not None
    step = expand(quantized.scales, group, width)
    # A multiple may fall short by 2^-20 of what it should reach; the quotient, the product and the
    # difference round by 2^-24 of at most 128 steps each. The row's largest weight is at most
    # 119 (1 + 2^-11) row steps, which the largest multiples reach.
    bound = step * (0.5 + (top + 0.5) * 2**-20 + 3 * 128 * 2**-24)
    assert ((quantized.dequantize() - w).abs() <= bound).all()
    for column in range(quantized.scales.shape[1]):
        part = w[:, column * group : (column + 1) * group]
        largest = part.abs().amax(1, keepdim=True)
        both = [(largest / (channel * reach)).ceil() for reach in (top, top + 0.5)]
        errors = [
            (grid.round(part, m * channel) * m * channel - part).square().sum(1) for m in both
        ]
        found = quantized.steps()[:, column]
        assert ((found == both[0][:, 0]) | (found == both[1][:, 0])).all()
        error = (quantized.dequantize() - w)[:, column * group : (column + 1) * group].square()
        # sums of at most 128 squares, taken in another order
        assert (error.sum(1) <= torch.minimum(*errors) * (1 + 200 * 2**-24) + 1e-12).all()


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [16, 64, None])
def test_searched_scales_are_never_worse_than_covering_ones(
    levels: Literal[1, 2], bits: int, group: int | None
) -> None:
    w = normal(8, 100, seed=7)
    w[:4, 3] = 6.0  # an outlier for which clipping pays
    width = group or 100

    def losses(clip: bool) -> Tensor:
        rounded = round_to_nearest(w, WeightGrid(bits, group, levels, clip)).dequantize()
        error = (rounded - w).abs().pow(CLIP_NORM)
        return torch.stack([part.sum(1) for part in error.split(width, dim=1)], 1)

    # each loss is a sum of at most 100 powers in fp32, taken in another order here
    assert (losses(True) <= losses(False) * (1 + 200 * 2**-24)).all()
    assert (losses(True)[:4, 0] < losses(False)[:4, 0]).any()


def test_the_search_on_two_levels_finds_the_best_multiple() -> None:
    w = normal(6, 32, seed=8)
    grid = WeightGrid(4, 32, 2, clip=True)
    channel = grid.channel(w)
    assert channel is not None
    candidates = [channel * m for m in range(1, 19)]
    errors = [(grid.round(w, c) * c - w).abs().pow(CLIP_NORM).sum(1) for c in candidates]
    found = grid.scales(w, channel)
    error = (grid.round(w, found) * found - w).abs().pow(CLIP_NORM).sum(1)
    torch.testing.assert_close(error, torch.stack(errors).amin(0), rtol=0, atol=0)


def test_a_row_of_zeros_is_on_both_levels() -> None:
    w = normal(3, 32)
    w[1] = 0
    quantized = round_to_nearest(w, WeightGrid(4, 8, 2))
    assert not quantized.dequantize()[1].any()
    assert quantized.channel is not None
    assert quantized.channel[1] == SMALLEST_SCALE


def test_splitting_keeps_the_row_scales() -> None:
    quantized = round_to_nearest(normal(6, 40), WeightGrid(4, 16, 2))
    parts = quantized.split([2, 4])
    assert torch.equal(torch.cat([part.int8() for part in parts]), quantized.int8())
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), quantized.dequantize())
    assert quantized.to("cpu").channel is not None


def test_int8_of_one_level_is_its_codes() -> None:
    quantized = round_to_nearest(normal(6, 40), WeightGrid(8))
    assert torch.equal(quantized.int8(), quantized.codes)
    assert group_count(40, quantized.group) == 1


def test_a_second_level_needs_room_and_whole_multiples() -> None:
    with pytest.raises(ValueError, match="no room"):
        WeightGrid(5, 32, 2)
    codes, channel = torch.zeros(2, 8, dtype=torch.int8), torch.ones(2, 1)
    with pytest.raises(ValueError, match="whole multiples"):
        QuantizedLinear(codes, torch.full((2, 2), 1.5), 4, 4, channel)
    with pytest.raises(ValueError, match="positive float16"):
        QuantizedLinear(codes, torch.full((2, 2), 0.3), 4, 4, channel * 0.1)
    QuantizedLinear(codes, torch.full((2, 2), 3.0), 4, 4, channel)
