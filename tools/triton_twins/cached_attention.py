"""`DqxCachedAttention` in Triton: a second kernel, written from the operator's contract alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ort_ops.cached_attention.op import CachedForm
from tools.triton_twins.attend import Rounded, Seen, attend_to
from tools.triton_twins.rounding import LEAST_SCALE, codes_of

VECTORS = 32  # that a program rounds


@dataclass(frozen=True)
class CachedAttentionTwin:
    """The attributes."""

    form: CachedForm

    def __call__(self, x: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """y (B, Q, H · K) of inputs by name, `cos` and `sin` if there are any.

        The fed positions are written into the caches that are given.
        """
        form, q = self.form, x["q"]
        rows, fed, _ = q.shape
        width = q.shape[2] // form.heads
        turn = (x.get("cos"), x.get("sin"), 2 * x["cos"].shape[-1] if "cos" in x else 0)
        codes = torch.empty(rows, fed, form.heads, width, dtype=torch.int8, device=q.device)
        scales = torch.empty(rows, fed, form.heads, device=q.device)
        if not q.numel():
            return torch.empty_like(q)
        block = triton.next_power_of_2(width)
        round_queries[(triton.cdiv(scales.numel(), VECTORS),)](
            q, codes, scales, *turn, scales.numel(), form.heads, width, 1 / form.q_top,
            float(form.q_top), turn[2] > 0, VECTORS, block, enable_fp_fusion=False,
        )  # fmt: skip
        feed[(rows, triton.cdiv(fed, VECTORS), form.kv_heads)](
            x["k"], x["v"], x["k_cache"], x["k_scales"], x["v_cache"], x["start"], x["k_mean"],
            x["v_scale"], x["v_zero"], *turn, fed, x["k_cache"].shape[2], width, 1 / form.k_top,
            float(form.k_top), float(form.v_top), turn[2] > 0, form.k_bits, form.v_bits, VECTORS,
            block, max(1, block // 2), enable_fp_fusion=False,
        )  # fmt: skip
        rounded = Rounded(
            codes, scales, x["k_cache"], x["k_scales"], x["v_cache"], x["v_scale"], x["v_zero"]
        )
        seen = Seen(key_block=x["key_block"], reach=x["reach"])
        return attend_to(rounded, seen, 0 if form.v_bits == 16 else form.p_top, q.dtype)


@triton.jit
def turned(x, vector, known, cos, sin, place, channels, width, rotary, ROTARY: tl.constexpr):
    """Some channels of vectors; the first `rotary` of them turned by the angles of their places."""
    there = known[:, None] & (channels < width)[None, :]
    first = vector[:, None] * width
    own = tl.load(x + first + channels[None, :], mask=there, other=0.0).to(tl.float32)
    if not ROTARY:
        return own
    half = rotary // 2
    low, turns = channels < half, there & (channels < rotary)[None, :]
    partner = tl.where(low, channels + half, channels - half)[None, :]
    other = tl.load(x + first + partner, mask=turns, other=0.0).to(tl.float32)
    angle = place[:, None] * half + tl.where(low, channels, channels - half)[None, :]
    c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=turns, other=0.0).to(tl.float32)
    both = tl.where(low[None, :], own * c - other * s, own * c + other * s)
    return tl.where(turns, both, own)


@triton.jit
def round_queries(
    q, codes, scales, cos, sin, rotary, vectors, heads, width, step, top,
    ROTARY: tl.constexpr, VECTORS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A program VECTORS queries of a head each."""
    vector = tl.program_id(0).to(tl.int64) * VECTORS + tl.arange(0, VECTORS)
    known, channels = vector < vectors, tl.arange(0, WIDTH)
    values = turned(q, vector, known, cos, sin, vector // heads, channels, width, rotary, ROTARY)
    scale = tl.maximum(tl.max(tl.abs(values), 1) * step, LEAST_SCALE)
    tl.store(scales + vector, scale, mask=known)
    rounded = codes_of(values, scale[:, None], -top, top).to(tl.int8)
    there = known[:, None] & (channels < width)[None, :]
    tl.store(codes + vector[:, None] * width + channels[None, :], rounded, mask=there)


@triton.jit
def keys_of(k, vector, known, mean, cos, sin, place, channels, width, rotary, ROTARY: tl.constexpr):
    """Some channels of fed keys, without the mean."""
    less = tl.load(mean + channels, mask=channels < width, other=0.0).to(tl.float32)
    x = turned(k, vector, known, cos, sin, place, channels, width, rotary, ROTARY)
    return x - less[None, :]


@triton.jit
def value_codes(v, vector, known, v_scale, v_zero, channels, width, top):
    """Codes 0 … top of some channels of fed values."""
    there = channels < width
    scale = tl.load(v_scale + channels, mask=there, other=1.0).to(tl.float32)[None, :]
    zero = tl.load(v_zero + channels, mask=there, other=0.0).to(tl.float32)[None, :]
    place = vector[:, None] * width + channels[None, :]
    values = tl.load(v + place, mask=known[:, None] & there[None, :], other=0.0).to(tl.float32)
    return codes_of(values, scale, -zero, top - zero) + zero


@triton.jit
def put(cache, to, known, codes, channels, width):
    """Codes or values (vectors, channels) to vectors of `width`."""
    there = known[:, None] & (channels < width)[None, :]
    tl.store(cache + to[:, None] * width + channels[None, :], codes, mask=there)


@triton.jit
def packed(low, high):
    """Codes of 0 … 15, two a byte."""
    return (low.to(tl.int32) | (high.to(tl.int32) << 4)).to(tl.int8)


@triton.jit
def feed(
    k, v, k_cache, k_scales, v_cache, starts, k_mean, v_scale, v_zero, cos, sin, rotary,
    fed, capacity, width, step, k_top, v_top,
    ROTARY: tl.constexpr, K_BITS: tl.constexpr, V_BITS: tl.constexpr, VECTORS: tl.constexpr,
    WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A program VECTORS fed positions of one key head: their keys and values into the caches."""
    row, head, kv_heads = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    query = tl.program_id(1) * VECTORS + tl.arange(0, VECTORS)
    known = query < fed
    place = (row * fed + query).to(tl.int64)
    vector = place * kv_heads + head
    to = (row * kv_heads + head).to(tl.int64) * capacity + tl.load(starts + row) + query
    channels, half, bytes_ = tl.arange(0, WIDTH), tl.arange(0, HALF), width // 2
    mean = k_mean + head * width
    values = keys_of(k, vector, known, mean, cos, sin, place, channels, width, rotary, ROTARY)
    values = tl.where((channels < width)[None, :], values, 0.0)
    scale = tl.maximum(tl.max(tl.abs(values), 1) * step, LEAST_SCALE)
    scale = scale.to(k_scales.dtype.element_ty)
    tl.store(k_scales + to, scale, mask=known)
    scale = scale.to(tl.float32)[:, None]
    if K_BITS == 8:
        codes = codes_of(values, scale, -k_top, k_top).to(tl.int8)
        put(k_cache, to, known, codes, channels, width)
    else:
        low = keys_of(k, vector, known, mean, cos, sin, place, half, width, rotary, ROTARY)
        high = keys_of(
            k, vector, known, mean, cos, sin, place, half + bytes_, width, rotary, ROTARY
        )
        low = codes_of(low, scale, -k_top, k_top) + 8.0
        high = codes_of(high, scale, -k_top, k_top) + 8.0
        put(k_cache, to, known, packed(low, high), half, bytes_)
    scale_of, zero_of = v_scale + head * width, v_zero + head * width
    if V_BITS == 16:
        there = known[:, None] & (channels < width)[None, :]
        plain = tl.load(v + vector[:, None] * width + channels[None, :], mask=there, other=0.0)
        put(v_cache, to, known, plain, channels, width)
    elif V_BITS == 8:
        codes = value_codes(v, vector, known, scale_of, zero_of, channels, width, v_top)
        put(v_cache, to, known, (codes - 128.0).to(tl.int8), channels, width)
    else:
        low = value_codes(v, vector, known, scale_of, zero_of, half, width, v_top)
        high = value_codes(v, vector, known, scale_of, zero_of, half + bytes_, width, v_top)
        put(v_cache, to, known, packed(low, high), half, bytes_)
