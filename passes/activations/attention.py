"""Attention on quantized operands: the grids of queries, keys, values and probabilities.

Queries and keys get a scale a token and head at run time. Subtracting the mean key from all keys
changes no probability and takes away what makes keys hard to round (SageAttention, arXiv
2410.02367, section 4.2). Values get scales a channel that all tokens share, found by calibration,
so that the product with the probabilities can be a product of integers (IA-AQ of DLLMQuant); or one
a token and head at run time. Probabilities are unsigned. Their grid ends at the largest of a row,
and codes are divided by their sum, as a product of integers can have it: exp(s − max s) is rounded
before anything is divided. A static grid ends at 1.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from passes.activations.grid import LEAST_SCALE

FLOAT = 16  # bits of an operand that stays float


@dataclass(frozen=True, eq=False)
class AttentionGrid:
    """Bits of the operands, 16 for float ones, and how the grids are laid."""

    q_bits: int = FLOAT
    k_bits: int = FLOAT
    v_bits: int = FLOAT
    p_bits: int = FLOAT
    p_scale: Literal["static", "row"] = "row"
    key_mean: bool = True  # subtract the mean of the keys that all see before rounding
    rotation: Tensor | None = None  # (K, K) orthogonal, on queries and keys behind the positions
    v_scale: Tensor | None = None  # (kv heads, K) fp32 > 0; None: a scale a token and head
    v_zero: Tensor | None = None  # (kv heads, K) fp32 whole numbers: the code of the value 0
    k_mean: Tensor | None = None  # (kv heads, K) fp32: a calibrated one in the place of that mean

    @property
    def is_float(self) -> bool:
        """Whether nothing is rounded."""
        return min(self.q_bits, self.k_bits, self.v_bits, self.p_bits) == FLOAT

    @property
    def keeps_codes(self) -> bool:
        """Whether a cache can hold the codes that attention computes with, or values as they are.

        Then codes of a key and a value depend on nothing but these: the mean key is calibrated, and
        so are the scales of values.
        """
        if self.k_mean is None or FLOAT in (self.q_bits, self.k_bits):
            return False
        if self.v_bits == self.p_bits == FLOAT:
            return True
        integers = FLOAT not in (self.v_bits, self.p_bits)
        return integers and self.v_scale is not None and self.p_scale == "row"

    @property
    def keeps_own(self) -> bool:
        """Whether a cache holds what attention computes with, be it codes or floats.

        Such is the rule for models with a calibrated mean key: nothing is rounded for the cache.
        """
        return self.k_mean is not None


def quantize_keys(k: Tensor, visible: Tensor | None, grid: AttentionGrid) -> Tensor:
    """Keys (B, H, S, K) rounded and back, without the mean of those `visible` (B, 1, 1, S)."""
    if grid.k_bits == FLOAT:
        return k
    if grid.k_mean is not None:
        k = k - grid.k_mean[:, None]
    elif grid.key_mean:
        k = k - mean_key(k, visible)
    return round_tokens(k, grid.k_bits)


def mean_key(k: Tensor, visible: Tensor | None) -> Tensor:
    """The mean (B, H, 1, K) of keys (B, H, S, K) over the visible tokens."""
    if visible is None:
        return k.mean(2, keepdim=True)
    shown = visible.transpose(2, 3).to(k.dtype)  # (B, 1, S, 1)
    return (k * shown).sum(2, keepdim=True) / shown.sum(2, keepdim=True)


def round_tokens(x: Tensor, bits: int) -> Tensor:
    """x (..., K) rounded and back on a symmetric grid a vector; as it is for 16 bits."""
    if bits == FLOAT:
        return x
    top = 2 ** (bits - 1) - 1
    scale = (x.abs().amax(-1, keepdim=True) * x.new_tensor(1 / top)).clamp_min(LEAST_SCALE)
    return (x / scale).round_().clamp_(-top, top) * scale


def quantize_values(v: Tensor, grid: AttentionGrid) -> Tensor:
    """Values (B, kv heads, S, K) rounded and back."""
    if grid.v_bits == FLOAT:
        return v
    if grid.v_scale is None or grid.v_zero is None:
        return round_tokens(v, grid.v_bits)
    scale, zero = grid.v_scale[:, None], grid.v_zero[:, None]  # (kv heads, 1, K)
    codes = ((v / scale).round_() + zero).clamp_(0, 2**grid.v_bits - 1)
    return (codes - zero) * scale


def quantize_probabilities(p: Tensor, grid: AttentionGrid) -> Tensor:
    """Softmax outputs (..., S) rounded and back.

    "row": to codes in steps of 1 / (2^b - 1) of the row's largest, divided by their sum; "static":
    in steps of 1 / (2^b - 1) of one, which is nothing at all where many keys get a little each.
    """
    if grid.p_bits == FLOAT:
        return p
    top = 2**grid.p_bits - 1
    if grid.p_scale == "static":
        return (p * float(top)).round_() * p.new_tensor(1 / top)
    codes = (p / p.amax(-1, keepdim=True) * float(top)).round_()
    return codes / codes.sum(-1, keepdim=True)


def probabilities(q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(K)) (B, H, S, S) for q (B, H, S, K) and k (B, kv heads, S, K).

    `allowed` is bool, broadcast to (B, H, S, S); None: everyone sees everyone.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def quantized_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    common: Tensor | None,
    grid: AttentionGrid,
) -> Tensor:
    """Attention (B, H, Q, K) of q (B, H, Q, K) over k and v (B, kv heads, S, K) on `grid`.

    `allowed` bool (B, 1, 1 or Q, S): who sees whom. `common` bool (B, 1, 1, S): the keys that every
    query of the canvas sees, be it fed or not; the mean key is theirs, so that rounding does not
    tell a query of keys that it does not see. None: all.
    """
    q, k, v = rounded_operands(q, k, v, common, grid)
    return rounded_attention(q, k, v, allowed, grid)


def rounded_operands(
    q: Tensor, k: Tensor, v: Tensor, common: Tensor | None, grid: AttentionGrid
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, Q, K), k and v (B, kv heads, S, K), turned and rounded as `grid` says."""
    if grid.rotation is not None:
        q, k = q @ grid.rotation, k @ grid.rotation
    k = quantize_keys(k, common, grid)
    return round_tokens(q, grid.q_bits), k, quantize_values(v, grid)


def rounded_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, grid: AttentionGrid
) -> Tensor:
    """`quantized_attention` of operands that are on their grids."""
    p = quantize_probabilities(probabilities(q, k, allowed), grid)
    return p @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
