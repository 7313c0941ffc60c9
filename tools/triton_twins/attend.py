"""Attention over codes in Triton: what the twins of `attention` and `cached_attention` share.

Two passes over the keys: the largest score of each query, then e = exp(s - max s), its codes and
their products with the codes of values. Triton multiplies bytes of one type alone, so codes of
0 … 255 enter as code - 128, and the sums are put right by sums of codes.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tools.triton_twins.rounding import rint

NEVER = tl.constexpr(-3.4028234663852886e38)  # the score of what is not seen
KEYS = 64  # of a tile
MOST_QUERIES = 64


@dataclass(frozen=True)
class Rounded:
    """Operands in codes: vectors as one tensor after another."""

    q: torch.Tensor  # int8 (B, Q, H, K)
    q_scales: torch.Tensor  # fp32 (B, Q, H)
    k: torch.Tensor  # int8 (B, G, S, K), or two codes + 8 a byte (B, G, S, K / 2)
    k_scales: torch.Tensor  # (B, G, S)
    v: torch.Tensor  # int8 codes - 128, or two codes a byte (…, K / 2), or floats (B, G, S, K)
    v_scale: torch.Tensor  # (G, K)
    v_zero: torch.Tensor  # (G, K)


@dataclass(frozen=True)
class Seen:
    """Who sees whom: `visible` (B, Q, S), or blocks of keys (B, S) and reach of queries (B, Q)."""

    visible: torch.Tensor | None = None
    key_block: torch.Tensor | None = None
    reach: torch.Tensor | None = None


def attend_to(x: Rounded, seen: Seen, p_top: int, kind: torch.dtype) -> torch.Tensor:
    """y (B, Q, H · K); p_top 0: products with values in halves."""
    rows, queries, heads, width = x.q.shape
    kv_heads, keys = x.k.shape[1:3]
    y = torch.empty(rows, queries, heads * width, dtype=kind, device=x.q.device)
    if not y.numel():
        return y
    v_bits = 16 if p_top == 0 else 8 * x.v.shape[3] // width
    tile = min(MOST_QUERIES, max(16, triton.next_power_of_2(queries)))
    visible = None if seen.visible is None else seen.visible.contiguous().view(torch.uint8)
    attend[(triton.cdiv(queries, tile), heads, rows)](
        x.q, x.q_scales, x.k, x.k_scales, x.v, x.v_scale, x.v_zero, visible, seen.key_block,
        seen.reach, y, queries, keys, heads, kv_heads, width, width**-0.5, p_top,
        visible is None, 8 * x.k.shape[3] // width, v_bits,
        tile, KEYS, max(32, triton.next_power_of_2(width)),
    )  # fmt: skip
    return y


@triton.jit
def four_or_eight(codes, vectors, channels, there, width, less, BITS: tl.constexpr):
    """Codes (keys, channels) of vectors of bytes; of 4 bits `less` is taken off."""
    if BITS == 8:
        return tl.load(codes + vectors[:, None] * width + channels[None, :], mask=there, other=0)
    half = width // 2
    place = vectors[:, None] * half + (channels % half)[None, :]
    both = tl.load(codes + place, mask=there, other=0).to(tl.int32)
    code = (both >> (channels // half * 4)[None, :]) & 15
    return tl.where(there, code - less, 0).to(tl.int8)


@triton.jit
def scores_of(
    q, factors, k, k_scales, visible, key_block, reach, row, first, lines, at, channels, queries,
    keys, width, CACHED: tl.constexpr, K_BITS: tl.constexpr,
):  # fmt: skip
    """(queries, keys) of a tile: NEVER where a key is hidden, -inf where there is none."""
    vectors = first + at
    there = (at[:, None] < keys) & (channels[None, :] < width)
    codes = four_or_eight(k, vectors, channels, there, width, 8, K_BITS)
    sums = tl.dot(q, tl.trans(codes), out_dtype=tl.int32)
    scales = tl.load(k_scales + vectors, mask=at < keys, other=0.0).to(tl.float32)
    scores = sums.to(tl.float32) * scales[None, :] * factors[:, None]
    if CACHED:
        block = tl.load(key_block + row * keys + at, mask=at < keys, other=0)
        far = tl.load(reach + row * queries + lines, mask=lines < queries, other=0)
        seen = block[None, :] <= far[:, None]
    else:
        known = (lines[:, None] < queries) & (at[None, :] < keys)
        pairs = (row * queries + lines)[:, None].to(tl.int64) * keys + at[None, :]
        seen = tl.load(visible + pairs, mask=known, other=0) != 0
    scores = tl.where(seen, scores, NEVER)
    return tl.where((at < keys)[None, :], scores, float("-inf"))


@triton.jit
def attend(
    q, q_scales, k, k_scales, v, v_scale, v_zero, visible, key_block, reach, y,
    queries, keys, heads, kv_heads, width, unit, p_top,
    CACHED: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A program a tile of queries of one head."""
    lines = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head, row = tl.program_id(1), tl.program_id(2)
    key_head = head // (heads // kv_heads)
    channels = tl.arange(0, WIDTH)
    vectors = (row * queries + lines).to(tl.int64) * heads + head
    known = (lines[:, None] < queries) & (channels[None, :] < width)
    codes = tl.load(q + vectors[:, None] * width + channels[None, :], mask=known, other=0)
    factors = tl.load(q_scales + vectors, mask=lines < queries, other=0.0) * unit
    first = (row * kv_heads + key_head).to(tl.int64) * keys
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    for start in range(0, keys, KEYS):
        at = start + tl.arange(0, KEYS)
        scores = scores_of(
            codes, factors, k, k_scales, visible, key_block, reach, row, first, lines, at, channels,
            queries, keys, width, CACHED, K_BITS,
        )  # fmt: skip
        most = tl.maximum(most, tl.max(scores, 1))
    weights = tl.zeros((QUERIES,), tl.float32)  # sums of e
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    counts = tl.zeros((QUERIES,), tl.int32)  # sums of its codes
    sums = tl.zeros((QUERIES, WIDTH), tl.int32)
    for start in range(0, keys, KEYS):
        at = start + tl.arange(0, KEYS)
        scores = scores_of(
            codes, factors, k, k_scales, visible, key_block, reach, row, first, lines, at, channels,
            queries, keys, width, CACHED, K_BITS,
        )  # fmt: skip
        e = tl.exp(scores - most[:, None])
        there = (at[:, None] < keys) & (channels[None, :] < width)
        if V_BITS == 16:
            place = (first + at)[:, None] * width + channels[None, :]
            values = tl.load(v + place, mask=there, other=0.0)
            # what nobody sees may be no number, and counts as 0 where a query sees nothing
            shown = (scores > NEVER) & (lines < queries)[:, None]
            looked_at = tl.max(shown.to(tl.int32), 0) > 0
            values = tl.where(looked_at[:, None] | (values == values), values, 0.0)
            total = tl.dot(e.to(tl.float16), values.to(tl.float16), total)
            weights += tl.sum(e, 1)
        else:
            values = four_or_eight(v, first + at, channels, there, width, 0, V_BITS)
            p = rint(e * p_top).to(tl.int32)
            sums = tl.dot((p - 128).to(tl.int8), values, sums, out_dtype=tl.int32)
            sums += 128 * tl.sum(values.to(tl.int32), 0)[None, :]
            counts += tl.sum(p, 1)
    if V_BITS == 16:
        result = total / weights[:, None]
    else:
        own = key_head * width + channels
        scale = tl.load(v_scale + own, mask=channels < width, other=0.0).to(tl.float32)
        zero = tl.load(v_zero + own, mask=channels < width, other=0.0).to(tl.int32)
        less = zero - (128 if V_BITS == 8 else 0)
        sums -= counts[:, None] * less[None, :]
        result = tl.div_rn(sums.to(tl.float32), counts.to(tl.float32)[:, None]) * scale[None, :]
    tl.store(
        y + vectors[:, None] * width + channels[None, :], result.to(y.dtype.element_ty), mask=known
    )
