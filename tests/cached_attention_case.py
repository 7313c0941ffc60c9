"""Operands of attention over a cache, and the outputs that are right for them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ort_ops.cached_attention.op import (
    HIDDEN,
    INPUTS,
    NEVER,
    TURNS,
    CachedForm,
    Caches,
    looked_at,
    rounded_queries,
    stored,
    visible,
    write,
)

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

U = 2.0**-24  # relative error of one rounding to fp32
HALF = 2.0**-11  # of one to fp16


@dataclass(frozen=True)
class CachedShape:
    """Sizes of a case; of each head `turned` channels are rotated."""

    rows: int
    queries: int
    capacity: int
    width: int
    turned: int = 0


@dataclass(frozen=True)
class CachedCase:
    """The operator's inputs by name (see op.py), and its attributes."""

    form: CachedForm
    x: dict[str, Array]

    @property
    def inputs(self) -> list[Array]:
        """In the operator's order."""
        return [self.x[name] for name in (*INPUTS, *TURNS) if name in self.x]

    def caches(self) -> Caches:
        """What the caches hold afterwards, bit by bit: codes are certain, see `random_case`."""
        return write(self.form, self.x)

    def bounds(self) -> tuple[Array, Array, float]:
        """The least and the largest y that is right, and the share of certain probabilities.

        Codes of probabilities get room for the roundings of fp32; nearly all have one code all the
        same. Integers are summed exactly. Then come five roundings at most: of both sums, of a
        reciprocal, of two products. Weights that are off by `d` move a mean of values by
        Σ d |v − mean| / Σ weights. With values as floats, weights and values may be halves, of
        which sums are in fp32. Rounding to the type of y keeps order.
        """
        e_low, e_high = self._exponentials()
        _, _, v = stored(self.form, self.caches())
        shared = self.form.heads // self.form.kv_heads
        if self.form.v_bits == 16:
            middle, low, high = self._of_floats(e_low, e_high, v.repeat(shared, 1))
            certain = 1.0
        else:
            p_low, p_high = (np.rint(e * self.form.p_top) for e in (e_low, e_high))
            zero, scale = (
                self.x[name].astype(np.float64).reshape(-1, 1, v.shape[3]).repeat(shared, 0)
                for name in ("v_zero", "v_scale")
            )
            middle, reach = _mean(p_low, p_high, v.repeat(shared, 1) - zero)
            middle, reach = middle * scale, reach * scale
            reach = reach * (1 + 6 * U) + 5.1 * U * np.abs(middle)
            low, high = middle - reach, middle + reach
            certain = float(np.mean(p_low == p_high))
        kind, shape = self.x["q"].dtype, self.x["q"].shape
        found = [y.transpose(0, 2, 1, 3).reshape(shape).astype(kind) for y in (low, high)]
        return found[0], found[1], certain

    def _of_floats(
        self, e_low: Float64, e_high: Float64, v: Float64
    ) -> tuple[Float64, Float64, Float64]:
        """The mean of values by exponentials, and how little and how much it may be."""
        keys = v.shape[2]
        seen = looked_at(self.x)[:, None, :, None]
        v = np.where(seen, v, np.nan_to_num(v, posinf=0, neginf=0))
        tiny = 2.0**-25 * (e_high > 0)
        e_low, e_high = (e_low * (1 - HALF) - tiny).clip(0), e_high * (1 + HALF) + tiny
        middle, reach = _mean(e_low, e_high, v)
        e = (e_low + e_high) / 2
        size = e @ np.abs(v) / e.sum(-1, keepdims=True)
        reach = reach + (HALF + (2 * keys + 5) * U) * 1.01 * size
        return middle, middle - reach, middle + reach

    def _exponentials(self) -> tuple[Float64, Float64]:
        """The least and the largest exp(s − max s) (B, H, Q, C), up to 1.

        A score in units of log 2 has seven roundings: 1 / sqrt(K) has two, log2 e one; they are
        multiplied with each other, with both scales, and with the sum. exp() of a difference,
        itself rounded, is within 2 units in the last place, and a product follows. Exponentials
        below 2^-125 may be 0.
        """
        scores = self._scores()
        shown = np.broadcast_to(visible(self.x), scores.shape)
        blind = ~shown.any(-1, keepdims=True)  # all scores are equal, and exp(0) is exact
        off = np.where(shown, 7.1 * U * np.abs(scores), 0)
        most = np.where(shown, scores, NEVER).max(-1, keepdims=True)
        x = np.where(shown, scores - most, 0)
        room = off + off.max(-1, keepdims=True) * (x < 0) + 1.01 * U * np.abs(x)
        low = np.exp(x - room) * (1 - 5.1 * U) - 2.0**-125
        high = np.exp(x + room) * (1 + 5.1 * U) + 2.0**-125
        low, high = (np.where(shown, e, 0).clip(0, 1) for e in (low, high))
        first = shown & (x == 0)  # the largest is exact, unless another takes its place
        low = np.where(first & ((high == 1).sum(-1, keepdims=True) == 1), 1, low)
        return np.where(blind, 1, low), np.where(blind, 1, high)

    def _scores(self) -> Float64:
        """Products of codes and scales (B, H, Q, C); of what nobody sees anything finite."""
        k, scales, _ = stored(self.form, self.caches())
        q, q_scales = rounded_queries(self.form, self.x)
        shared = self.form.heads // self.form.kv_heads
        steps = (k * np.nan_to_num(scales)).repeat(shared, 1)
        scores: Float64 = (q * q_scales) @ steps.swapaxes(2, 3) / q.shape[3] ** 0.5
        return scores


def _mean(low: Float64, high: Float64, v: Float64) -> tuple[Float64, Float64]:
    """The mean of v (B, H, C, K) by weights (B, H, Q, C) from low to high, and how far it is off.

    Σ d (|v| + |mean|) is at least Σ d |v − mean|.
    """
    weights, apart = (low + high) / 2, (high - low) / 2
    total, slack = weights.sum(-1, keepdims=True), apart.sum(-1, keepdims=True)
    middle = weights @ v / total
    return middle, (apart @ np.abs(v) + slack * np.abs(middle)) / (total - slack)


def random_case(
    rng: np.random.Generator, shape: CachedShape, form: CachedForm, half: bool
) -> CachedCase:
    """Random operands of which all codes are certain, and caches that hold anything where hidden.

    Keys, queries and their turns are whole numbers of steps of 2^-6 and 2^-3, of which fp32 holds
    products and sums. Values lie between two codes here and there, and beyond the last ones.
    """
    dtype = np.float16 if half else np.float32
    x: dict[str, Array] = dict(
        zip(("start", "key_block", "reach"), _places(rng, shape, form), strict=True)
    )
    rows, queries, width, kv_heads = shape.rows, shape.queries, shape.width, form.kv_heads
    x["k_mean"] = rng.integers(-192, 193, kv_heads * width) / 64
    x["k"] = rng.integers(-256, 257, (rows, queries, kv_heads * width)) / 64 + x["k_mean"]
    size = rng.choice([16, 64, 256])
    x["q"] = rng.integers(-size, size + 1, (rows, queries, form.heads * width)) / 64
    x["q"][rng.random((rows, queries)) < 0.1] = 0
    if shape.turned:
        for name in TURNS:
            x[name] = rng.integers(-8, 9, (rows, queries, shape.turned // 2)) / 8
    top = form.v_top or 255
    x["v_scale"] = (2.0 ** rng.uniform(-1, 3, kv_heads * width) / top).astype(dtype)
    x["v_zero"] = rng.integers(0, top + 1, kv_heads * width)
    v = rng.uniform(-1, 1, (rows, queries, kv_heads * width))
    between = (rng.integers(-top, top, v.shape) + 0.5) * x["v_scale"]
    x["v"] = np.where(rng.random(v.shape) < 0.2, between, v)
    x |= _caches(rng, shape, form, looked_at(x))
    kept = ("k_cache", "start", "key_block", "reach", *["v_cache"] * (form.v_bits < 16))
    x = {name: a if name in kept else a.astype(dtype) for name, a in x.items()}
    return CachedCase(form, {name: np.ascontiguousarray(a) for name, a in x.items()})


def _caches(
    rng: np.random.Generator, shape: CachedShape, form: CachedForm, seen: Array
) -> dict[str, Array]:
    """What earlier calls may have left; where nobody looks there is anything at all."""
    where = (shape.rows, form.kv_heads, shape.capacity)
    hidden = ~seen[:, None, :, None]
    if form.k_bits == 8:
        k = rng.integers(-127, 128, (*where, shape.width))
    else:
        k = _pairs(rng, 1, (*where, shape.width // 2))
    k = np.where(hidden, rng.integers(-128, 128, k.shape), k)
    scales = np.where(hidden, np.nan, rng.integers(1, 65, (*where, 1)) / 2048)
    if form.v_bits == 16:
        v: Array = rng.normal(size=(*where, shape.width))
        every = np.asarray(seen.any(-1))[
            :, None, None, None
        ]  # else all count, and have to be numbers
        v = np.where(hidden & every & (rng.random(v.shape) < 0.5), np.nan, v)
    else:
        v = rng.integers(-128, 128, (*where, shape.width // (8 // form.v_bits)))
    kind = np.float64 if form.v_bits == 16 else np.int8
    return {"k_cache": k.astype(np.int8), "k_scales": scales, "v_cache": v.astype(kind)}


def _pairs(rng: np.random.Generator, least: int, shape: tuple[int, ...]) -> Array:
    """Bytes of two codes from `least` to 15."""
    low, high = rng.integers(least, 16, (2, *shape), dtype=np.uint8)
    pairs: Array = (low | high << 4).view(np.int8)
    return pairs


def _places(
    rng: np.random.Generator, shape: CachedShape, form: CachedForm
) -> tuple[Array, Array, Array]:
    """`start`, `key_block` and `reach`: everybody, padding, blocks, blocks of which the last is
    filled, anything; with codes of values some queries see nothing.
    """
    rows, queries, capacity = shape.rows, shape.queries, shape.capacity
    start = rng.integers(0, capacity - queries + 1, rows)
    at = start[:, None] + np.arange(queries)  # (rows, queries)
    block: Array = np.zeros((rows, capacity), np.int64)
    reach: Array = np.zeros((rows, queries), np.int64)
    kind = rng.integers(5)
    shown: Array = np.arange(capacity) >= rng.integers(0, capacity, (rows, 1)) * (kind > 0)
    if kind in (2, 3):
        size = 1 if kind == 3 else int(rng.integers(1, 40))
        block = (shown.cumsum(1) - 1).clip(0) // size
        reach = np.take_along_axis(block, at, 1)
        last = block[:, -1:] if kind == 3 else np.full((rows, 1), -1)
        reach = np.where((reach > last - 8) & (last >= 0), last, reach)
    elif kind == 4:
        block, reach = rng.integers(0, 9, block.shape), rng.integers(0, 9, reach.shape)
    block = np.where(shown, block, HIDDEN + rng.integers(0, 2, block.shape) * (2**30 - 1))
    if form.v_bits < 16:
        reach = np.where(rng.random(reach.shape) < 0.05, -1, reach)
    return start, block.astype(np.int32), reach.astype(np.int32)
