"""Attention over codes in a cache: contract, and reference in numpy.

`DqxCachedAttention(q, k, v, k_cache, k_scales, v_cache, start, key_block, reach, k_mean, v_scale,
v_zero) -> y, k_cache_out, k_scales_out, v_cache_out`, domain `dqexport`, version 1. T is fp32 or
fp16; B rows, Q fed positions, a cache of C, H heads, G key heads of K channels:

* q T (B, Q, H · K), k and v T (B, Q, G · K): of the fed positions;
* k_cache int8 (B, G, C, K): codes; with 4 bits (B, G, C, K / 2), see below;
* k_scales T (B, G, C, 1);
* v_cache int8 (B, G, C, K): codes − 128; with 4 bits (B, G, C, K / 2); with 16 T (B, G, C, K),
  values as they are;
* start int64 (B,): position of the first fed one, 0 ≤ start ≤ C − Q;
* key_block int32 (B, C), from 2^30 on: hidden from all; reach int32 (B, Q): a query sees the keys
  of the blocks up to it;
* k_mean, v_scale > 0, v_zero whole, from 0 to v_top: T, G · K of them in this order, any shape;
* y T (B, Q, H · K), and the caches with the fed positions written, meant to be in place.

`DqxCachedAttentionRotary` has two more inputs, cos and sin T (B, Q, R / 2): it turns channel i of q
and k with channel i + R / 2 first, i < R / 2. With v_bits 16 names end in `FloatValues`, so that a
model may have both kinds, with a function body each.

Attributes: `heads`, `kv_heads`; `q_top` (7 or 127) and `p_top` (15 or 255), the largest codes;
`k_bits` (8 or 4); `v_bits` (8 or 4; 16 goes with p_top 0). The largest codes of keys and values are
127 or 7 and 255 or 15. Two 4-bit codes share a byte: channel i in the low half, channel i + K / 2
in the high one, 8 added to those of keys.

Keys lose `k_mean`, which no softmax notices, and are rounded with a scale a vector, as T holds it;
values on static scales of their channels. What a cache holds enters the products as it stands:
nothing is rounded twice. Queries have a scale a vector in fp32. With s the scores, scaled by
1 / sqrt(K), of what a query sees: e = exp(s − max s), c = rint(e · p_top),
y = Σ c (code − zero) / Σ c · v_scale; a query that sees nothing weighs all C alike. With v_bits 16
y = Σ e v / Σ e. What hidden keys hold changes nothing, be it no number. Codes cannot
say that something is no number: where q, k, or v on a grid is none, what comes out means nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NAME, ROTARY = "DqxCachedAttention", "DqxCachedAttentionRotary"
LEAST_SCALE = 2.0**-24
NEVER = -3.4028234663852886e38  # the score of what is not seen
HIDDEN = 2**30  # block of a key that nobody sees
INPUTS = (
    "q", "k", "v", "k_cache", "k_scales", "v_cache", "start", "key_block", "reach",
    "k_mean", "v_scale", "v_zero",
)  # fmt: skip
TURNS = ("cos", "sin")

FLOAT_VALUES = "FloatValues"

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CachedForm:
    """The attributes."""

    heads: int
    kv_heads: int
    q_top: int = 127
    p_top: int = 255
    k_bits: int = 8
    v_bits: int = 8

    @property
    def k_top(self) -> int:
        return int(2 ** (self.k_bits - 1)) - 1

    @property
    def v_top(self) -> int:
        """0: values are floats."""
        return 0 if self.v_bits == 16 else 2**self.v_bits - 1


def operator_name(form: CachedForm, rotary: bool) -> str:
    """What a node with these attributes is called."""
    return (ROTARY if rotary else NAME) + FLOAT_VALUES * (form.v_bits == 16)


@dataclass(frozen=True)
class Caches:
    """What is kept, as the operator keeps it."""

    k: Array
    k_scales: Array
    v: Array


def reference(form: CachedForm, x: Mapping[str, Array]) -> tuple[Float64, Caches]:
    """y (B, Q, H · K) in float64 of inputs by name, and the caches as they are to be left."""
    caches = write(form, x)
    codes, scales, values = stored(form, caches)
    q, q_scales = rounded_queries(form, x)
    shared = form.heads // form.kv_heads
    with np.errstate(invalid="ignore"):  # scales of hidden keys may be no numbers
        scores = q @ codes.repeat(shared, 1).swapaxes(2, 3) * q_scales
        scores = scores * scales.repeat(shared, 1).swapaxes(2, 3) / q.shape[3] ** 0.5
    seen = visible(x)
    scores = np.where(seen, scores, NEVER)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    values = np.where(looked_at(x)[:, None, :, None], values, np.nan_to_num(values))
    values = values.repeat(shared, 1)
    if form.v_bits == 16:
        y = e @ values / e.sum(-1, keepdims=True)
    else:
        p = np.rint(e * form.p_top)
        zero, scale = (_by_head(x[n], form).repeat(shared, 0) for n in ("v_zero", "v_scale"))
        y = p @ (values - zero) / p.sum(-1, keepdims=True) * scale
    joined: Float64 = y.transpose(0, 2, 1, 3).reshape(x["q"].shape)
    return joined, caches


def visible(x: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
    """Which keys each query sees (B, 1, Q, C)."""
    return np.less_equal(x["key_block"][:, None, None], x["reach"][:, None, :, None])


def looked_at(x: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
    """Which keys some query sees (B, C)."""
    return np.asarray(visible(x).any((1, 2)))


def write(form: CachedForm, x: Mapping[str, Array]) -> Caches:
    """The caches with the fed keys and values in their places."""
    dtype = x["k"].dtype
    k = _turned(_heads(x["k"], form.kv_heads), x) - _by_head(x["k_mean"], form).astype(np.float32)
    scales = np.abs(k).max(-1, keepdims=True) * np.float32(1 / form.k_top)
    scales = np.maximum(scales, np.float32(LEAST_SCALE)).astype(dtype)
    codes = np.rint(k / scales.astype(np.float32)).clip(-form.k_top, form.k_top)
    v = _heads(x["v"], form.kv_heads)
    if form.v_bits == 16:
        values = v.astype(dtype)
    else:
        scale, zero = (_by_head(x[n], form).astype(np.float32) for n in ("v_scale", "v_zero"))
        whole = (np.rint(v / scale) + zero).clip(0, form.v_top)
        values = _packed(whole) if form.v_bits == 4 else (whole - 128).astype(np.int8)
    keys = _packed(codes + 8) if form.k_bits == 4 else codes.astype(np.int8)
    kept = Caches(x["k_cache"].copy(), x["k_scales"].copy(), x["v_cache"].copy())
    for row, first in enumerate(x["start"]):
        fed = slice(int(first), int(first) + k.shape[2])
        kept.k[row, :, fed], kept.k_scales[row, :, fed] = keys[row], scales[row]
        kept.v[row, :, fed] = values[row]
    return kept


def stored(form: CachedForm, caches: Caches) -> tuple[Float64, Float64, Float64]:
    """Codes (B, G, C, K) and scales (B, G, C, 1) of keys; codes of values, or values."""
    k = _unpacked(caches.k) - 8 if form.k_bits == 4 else caches.k.astype(np.float64)
    if form.v_bits == 4:
        v = _unpacked(caches.v)
    else:
        v = caches.v.astype(np.float64) + (128 if form.v_bits == 8 else 0)
    return k, caches.k_scales.astype(np.float64), v


def rounded_queries(form: CachedForm, x: Mapping[str, Array]) -> tuple[Float64, Float64]:
    """Codes (B, H, Q, K) of queries and their scales (B, H, Q, 1)."""
    q = _turned(_heads(x["q"], form.heads), x)
    scales = np.abs(q).max(-1, keepdims=True) * np.float32(1 / form.q_top)
    scales = np.maximum(scales, np.float32(LEAST_SCALE))
    codes = np.rint(q / scales).clip(-form.q_top, form.q_top)
    return codes.astype(np.float64), scales.astype(np.float64)


def _heads(x: Array, heads: int) -> npt.NDArray[np.float32]:
    """x (B, Q, heads · K) as fp32 (B, heads, Q, K)."""
    apart = x.astype(np.float32).reshape(*x.shape[:2], heads, -1)
    return np.ascontiguousarray(apart.transpose(0, 2, 1, 3))


def _turned(y: npt.NDArray[np.float32], x: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    """y (B, heads, Q, K) with its positions, in fp32."""
    if "cos" not in x:
        return y
    cos, sin = (x[name].astype(np.float32)[:, None] for name in TURNS)
    half = cos.shape[-1]
    low, high, rest = np.split(y, [half, 2 * half], axis=-1)
    return np.concatenate((low * cos - high * sin, high * cos + low * sin, rest), -1)


def _by_head(x: Array, form: CachedForm) -> Float64:
    return x.astype(np.float64).reshape(form.kv_heads, 1, -1)


def _packed(codes: npt.NDArray[np.float32]) -> Array:
    """Codes (…, K) of 0 … 15 as bytes (…, K / 2)."""
    low, high = np.split(codes.astype(np.uint8), 2, axis=-1)
    return (low | high << 4).view(np.int8)


def _unpacked(pairs: Array) -> Float64:
    whole = pairs.view(np.uint8)
    return np.concatenate((whole & 15, whole >> 4), -1).astype(np.float64)
