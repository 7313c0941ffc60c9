"""Attention on grids: float where it should be, exact symmetries, and bounds on the rounding."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from passes.activations.attention import (
    AttentionGrid,
    mean_key,
    probabilities,
    quantize_keys,
    quantize_probabilities,
    quantize_values,
    quantized_attention,
    round_tokens,
)

B, H, S, K = 2, 4, 12, 8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(B, H, S, K, seed=1),
        normal(B, kv_heads, S, K, seed=2),
        normal(B, kv_heads, S, K, seed=3),
    )


def left_padding() -> Tensor:
    """allowed (B, 1, 1, S): 3 and 5 padded keys."""
    return (torch.arange(S) >= torch.tensor([[3], [5]]))[:, None, None, :]


def blocks_of_four() -> Tensor:
    """allowed (B, 1, S, S): a query sees its block of 4 and those before, but no padding."""
    block = torch.arange(S) // 4
    return left_padding() & (block[:, None] >= block)


EIGHT_BITS = [AttentionGrid(q_bits=8), AttentionGrid(k_bits=8)]
EIGHT_BITS += [AttentionGrid(v_bits=8), AttentionGrid(p_bits=8)]
MASKS = {"none": None, "padding": left_padding(), "blocks": blocks_of_four()}
COMMON = {"all": None, "shown": left_padding(), "few": left_padding() & (torch.arange(S) < 7)}


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_all_float_is_torchs_attention(kv_heads: int, allowed: Tensor | None) -> None:
    q, k, v = operands(kv_heads)
    ours = quantized_attention(q, k, v, allowed, None, AttentionGrid())
    k, v = (x.repeat_interleave(H // kv_heads, dim=1) for x in (k, v))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), allowed)
    seen = (
        torch.ones(B, 1, S, 1, dtype=torch.bool) if allowed is None else allowed.any(-1)[..., None]
    )
    # Scores of |s| <= 14 are sums of 8 products: off by 2^-24 * 9 * 14 < 1e-5, which moves each
    # probability by twice that of itself, and so the mean of values of |v| < 4.
    assert ((ours - exact).abs() <= 1e-4).logical_or(~seen).all()
    fused = F.scaled_dot_product_attention(q, k, v, allowed)
    assert ((ours - fused).abs() <= 2e-4).logical_or(~seen).all()


def test_sixteen_bits_change_no_bit() -> None:
    q, k, v = operands()
    grid = AttentionGrid(v_scale=torch.ones(2, K), v_zero=torch.zeros(2, K), key_mean=True)
    assert grid.is_float
    assert round_tokens(q, 16) is q
    assert quantize_keys(k, None, grid) is k
    assert quantize_values(v, grid) is v
    p = probabilities(q, k, None)
    assert quantize_probabilities(p, grid) is p
    assert not any(one.is_float for one in EIGHT_BITS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tokens_are_off_by_half_a_step(bits: int) -> None:
    q, top = operands()[0], 2 ** (bits - 1) - 1
    rounded = round_tokens(q, bits)
    step = q.abs().amax(-1, keepdim=True) / top
    # the scale, the quotient, the product and the difference round by 2^-24 of at most 128 steps
    assert ((rounded - q).abs() <= step * (0.5 + 4 * 128 * 2**-24)).all()
    codes = rounded / step
    assert ((codes - codes.round()).abs() <= 4 * 128 * 2**-24).all()
    assert codes.abs().max() <= top * (1 + 2**-20)
    assert not round_tokens(torch.zeros(2, 5), bits).any()


@pytest.mark.parametrize("allowed", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("common", COMMON.values(), ids=COMMON)
def test_the_key_mean_changes_no_probability(allowed: Tensor | None, common: Tensor | None) -> None:
    q, k, _ = operands()
    k = k + 3 * normal(1, 2, 1, K, seed=4)  # a bias, as keys have it
    mean = mean_key(k, common)
    with_mean, without = probabilities(q, k, allowed), probabilities(q, k - mean, allowed)
    # Scores reach 40 here: sums of 8 products, off by 2^-24 * 9 * 40 < 3e-5, twice.
    assert ((with_mean - without).abs() <= 1e-4 * with_mean + 1e-7).all()


def test_the_mean_is_that_of_visible_keys() -> None:
    k = operands()[1]
    shown = left_padding()
    junk = torch.where(shown.transpose(2, 3), k, 1e6)
    assert torch.equal(mean_key(junk, shown), mean_key(k, shown))
    expected = torch.stack([k[0, :, 3:].mean(1), k[1, :, 5:].mean(1)])[:, :, None]
    # sums of at most 12 values of |k| < 4, in another order
    torch.testing.assert_close(mean_key(k, shown), expected, rtol=0, atol=24 * 4 * 2**-24)


def test_without_a_bias_keys_are_rounded_better() -> None:
    k = operands()[1] + 5 * normal(1, 2, 1, K, seed=4)
    grid = AttentionGrid(k_bits=4)
    centred = k - k.mean(2, keepdim=True)
    error = (quantize_keys(k, None, grid) - centred).square().sum()
    plain = (quantize_keys(k, None, replace(grid, key_mean=False)) - k).square().sum()
    assert error < plain / 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_static_values_are_rounded_on_the_channels_grid(bits: int) -> None:
    v, top = operands()[2], 2**bits - 1
    low, high = v.amin((0, 2)).clamp(max=0), v.amax((0, 2)).clamp(min=0)
    scale = (high - low) / top
    zero = (-low / scale).round()
    grid = AttentionGrid(v_bits=bits, v_scale=scale, v_zero=zero)
    rounded = quantize_values(v, grid)
    step = scale[:, None]
    codes = rounded / step + zero[:, None]
    assert ((codes - codes.round()).abs() <= 4 * 256 * 2**-24).all()
    assert ((codes.round() >= 0) & (codes.round() <= top)).all()
    # Inside the range of the grid values are off by half a step; its ends, which the rounding of
    # the zero moves by up to half a step, are off by as much again.
    inside = (v >= -zero[:, None] * step) & (v <= (top - zero[:, None]) * step)
    assert ((rounded - v).abs()[inside] <= (step * (0.5 + 1e-4)).expand(v.shape)[inside]).all()
    assert ((rounded - v).abs() <= step * (1 + 1e-4)).all()
    assert not quantize_values(torch.zeros_like(v), grid).any(), "0 is a code"


def test_values_without_a_scale_get_one_a_token() -> None:
    v = operands()[2]
    assert torch.equal(quantize_values(v, AttentionGrid(v_bits=8)), round_tokens(v, 8))


@pytest.mark.parametrize("bits", [4, 8])
def test_probabilities_are_unsigned_steps_of_one_or_of_the_row(bits: int) -> None:
    q, k, _ = operands()
    p, top = probabilities(q, k, left_padding()), 2**bits - 1
    static = quantize_probabilities(p, AttentionGrid(p_bits=bits, p_scale="static"))
    row = quantize_probabilities(p, AttentionGrid(p_bits=bits))
    step = row.amax(-1, keepdim=True) / top  # the largest has the last code
    for rounded, each in ((static, torch.ones(1) / top), (row, step)):
        codes = rounded / each
        assert ((codes - codes.round()).abs() <= 4 * 256 * 2**-24).all()
        assert codes.min() >= 0
        assert codes.round().max() <= top
    assert ((static - p).abs() <= (0.5 + 4 * 256 * 2**-24) / top).all()
    codes, wanted = row / step, p / p.amax(-1, keepdim=True) * top
    assert ((codes - wanted).abs() <= 0.5 + 8 * 256 * 2**-24).all()
    torch.testing.assert_close(row.sum(-1), torch.ones(row.shape[:-1]), rtol=S * 2**-24, atol=0)
    assert (row - p).square().sum() < (static - p).square().sum()
    assert not static[:, :, :, :3].any() and not row[:, :, :, :3].any(), "hidden keys stay at 0"
    one_hot = torch.eye(S)
    for scale in ("static", "row"):
        grid = AttentionGrid(p_bits=8, p_scale=scale)
        assert torch.equal(quantize_probabilities(one_hot, grid), one_hot)


def test_many_small_probabilities_are_something() -> None:
    """1000 keys that get a thousandth each: nothing in steps of 1 / 255 of one."""
    p = torch.full((1000,), 1e-3)
    assert not quantize_probabilities(p, AttentionGrid(p_bits=8, p_scale="static")).any()
    assert torch.equal(quantize_probabilities(p, AttentionGrid(p_bits=8)), p)


@pytest.mark.parametrize("grid", EIGHT_BITS)
def test_eight_bits_of_an_operand_stay_close(grid: AttentionGrid) -> None:
    q, k, v = operands()
    exact = quantized_attention(q, k, v, left_padding(), left_padding(), AttentionGrid())
    rounded = quantized_attention(q, k, v, left_padding(), left_padding(), grid)
    # q and k: a score moves by half a step (|x| <= 4, 1/254) a channel against |x| <= 4, so by
    # 8 * 4 * 4 / 254 / sqrt(8) < 0.18 at most, a probability by as much of itself; p: 12 keys by
    # 1/510; v: 4 / 254. Values are below 4.
    assert 0 < (rounded - exact).abs().max() < 4 * 0.2


def test_padded_keys_have_no_say() -> None:
    q, k, v = operands()
    allowed, grid = left_padding(), AttentionGrid(8, 8, 8, 8)
    junk = ~allowed.transpose(2, 3)
    ours = quantized_attention(q, k, v, allowed, allowed, grid)
    other = quantized_attention(
        q, torch.where(junk, 7.0, k), torch.where(junk, 9.0, v), allowed, allowed, grid
    )
    assert torch.equal(ours[0, :, 3:], other[0, :, 3:])
    assert torch.equal(ours[1, :, 5:], other[1, :, 5:])


def test_a_rotation_changes_nothing_but_rounding() -> None:
    q, k, v = operands()
    turn = torch.linalg.qr(normal(K, K, seed=5)).Q
    plain = quantized_attention(q, k, v, None, None, AttentionGrid())
    turned = quantized_attention(q, k, v, None, None, AttentionGrid(rotation=turn))
    # two more sums of 8 products behind each score, and a matrix orthogonal to fp32
    torch.testing.assert_close(turned, plain, rtol=0, atol=2e-4)
    rounded = quantized_attention(q, k, v, None, None, AttentionGrid(k_bits=4, rotation=turn))
    keys = quantize_keys(k @ turn, None, AttentionGrid(k_bits=4))
    expected = probabilities(q @ turn, keys, None) @ v.repeat_interleave(2, dim=1)
    assert torch.equal(rounded, expected)
