"""Grids: error bounds, float16 scales, ragged groups, and equality with what the graph computes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ort_ops.int4 import dequantize_blocks, pack_int4, unpack_int4
from passes.numerics import (
    CLIP_NORM,
    SMALLEST_SCALE,
    QuantizedLinear,
    clip_scales,
    expand,
    quantize_to,
    symmetric_scales,
)

SHAPES = [(5, 128, 32), (3, 128, 64), (4, 256, 128), (3, 100, 32), (2, 7, 128), (1, 1, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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
    step = expand(quantized.scales, group, width)
    # Rounding the scale to float16 moves it by at most 2^-11, so that max|w| / scale exceeds the
    # largest code by at most 127 * 2^-11 < 1/2: clipping costs less than half a step. The quotient,
    # the product and the difference round by 2^-24 of at most 128 steps each.
    bound = step * (0.5 + 3 * 128 * 2**-24)
    assert ((quantized.dequantize() - w).abs() <= bound).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_scale_is_the_nearest_float16(bits: int, out: int, width: int, group: int) -> None:
    w = normal(out, width, seed=1)
    scales = symmetric_scales(w, bits, group)
    assert scales.shape == (out, -(-width // group))
    for column in range(scales.shape[1]):
        part = w[:, column * group : (column + 1) * group]
        exact = part.abs().amax(-1).numpy() / np.float32(2 ** (bits - 1) - 1)
        np.testing.assert_array_equal(scales[:, column].numpy(), exact.astype(np.float16))


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
    widest = w.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    candidates = [(widest * (1 - i / 100)).half().float() for i in range(80)]
    losses = torch.stack([loss(w, scales, bits, 64) for scales in candidates])
    torch.testing.assert_close(loss(w, best, bits, 64), losses.amin(0), rtol=0, atol=0)
    assert (best < symmetric_scales(w, bits, 64))[:4].all()


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
