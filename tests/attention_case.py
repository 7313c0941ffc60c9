"""Operands of attention, and the outputs that are right for them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ort_ops.attention.op import LEAST_SCALE, AttentionTops

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

U = 2.0**-24  # relative error of one rounding to fp32


@dataclass(frozen=True)
class AttentionCase:
    """The operator's inputs (see op.py), all floats of one type, and its attributes."""

    q: Floats
    k: Floats
    v: Floats
    visible: Bools
    common: Bools
    v_scale: Floats
    v_zero: Floats
    heads: int
    tops: AttentionTops

    @property
    def inputs(self) -> tuple[npt.NDArray[Any], ...]:
        return (self.q, self.k, self.v, self.visible, self.common, self.v_scale, self.v_zero)

    def bounds(self) -> tuple[Floats, Floats, float]:
        """The least and the largest y that is right, and the share of certain probabilities.

        The codes of queries, keys and values are certain if the mean key is: rounding is the last
        step to each of them, of numbers that fp32 computes in one way. Probabilities are given
        room for the roundings of fp32, and may get each code that lies in it; nearly all of them
        have one. What follows are sums of integers, and five roundings: of both sums to floats,
        of a quotient by way of a reciprocal, and of the product with the channel's scale. Rounding
        to the type of y keeps order.

        Where values stay floats, halves are allowed for: of each e and each v (2^-11, and 2^-25
        below 2^-14), of sums of S products in fp32 (S roundings of what is summed), and of Σ e.
        """
        low, high = self._probabilities()
        rows, heads, _, keys = low.shape
        values, step = self._values(heads)
        p, off = (low + high) / 2, (high - low) / 2
        total, total_off = p.sum(-1, keepdims=True), off.sum(-1, keepdims=True)
        middle, reach = p @ values / total, off @ np.abs(values)
        relative, least = 5.01 * U, 0.0
        if not self.tops.p:
            relative, least = (keys + 8) * U, 2.0**-25
            halved = (p * 2.0**-9.99 + least) @ np.abs(values) + p.sum(-1, keepdims=True) * least
            reach += halved + relative * (p @ np.abs(values))
            total_off = total_off + total * (relative + 2.0**-10.9) + keys * least
        reach = (reach + total_off * np.abs(middle)) / (total - total_off) * step * (1 + 8 * U)
        middle = middle * step
        reach += relative * np.abs(middle) + least
        found = [
            x.transpose(0, 2, 1, 3).reshape(rows, -1, self.q.shape[2]).astype(self.q.dtype)
            for x in (middle - reach, middle + reach)
        ]
        return found[0], found[1], float(np.mean(low == high))

    def _values(self, heads: int) -> tuple[Float64, Float64 | float]:
        """What is multiplied by probabilities (B, H, S, K), and what products are scaled by."""
        v = self.v.astype(np.float32)
        if not self.tops.v:
            return v.astype(np.float64).repeat(heads // v.shape[1], 1), 1.0
        scale, zero = (x.astype(np.float32) for x in (self.v_scale, self.v_zero))
        scale, zero = scale.reshape(-1, 1, v.shape[3]), zero.reshape(-1, 1, v.shape[3])
        codes = (np.rint(v / scale) + zero).clip(0, self.tops.v).astype(np.float64)
        shared = heads // len(scale)
        return (codes - zero).repeat(shared, 1), scale.astype(np.float64).repeat(shared, 0)

    def _probabilities(self) -> tuple[Float64, Float64]:
        """The least and the largest code of each exponential (B, H, Q, S), or the exponential.

        A score has five roundings: 1 / sqrt(K) has two, then come the products of it, of both
        scales and of the sum. exp() of a difference, itself rounded, is within 2 units in the last
        place, and at most 1. Then comes the product with p_top.
        """
        scores = self._scores()
        off = 5.01 * U * np.abs(scores)
        shown = np.broadcast_to(self.visible, scores.shape)
        blind = ~shown.any(-1, keepdims=True)  # all scores are equal, and exp(0) is exact
        hidden = np.where(shown, scores, -np.inf)
        x = np.where(blind, 0, hidden - np.where(blind, 0, hidden.max(-1, keepdims=True)))
        most_off = np.where(shown, off, 0).max(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            room = np.where(shown, (off + most_off) * 1.01 - 1.01 * U * x, 0)
        seen = shown | blind
        least = np.where(seen, np.exp(x - room) * (1 - 4.1 * U) - 2.0**-125, 0).clip(0)
        most = np.where(seen, np.exp(x + room) * (1 + 4.1 * U) + 2.0**-125, 0)
        if not self.tops.p:
            return least, most.clip(0, 1)
        low: Float64 = np.rint(least * self.tops.p * (1 - 1.1 * U))
        return low, np.rint((most * (1 + 1.1 * U)).clip(0, 1) * self.tops.p)

    def _scores(self) -> Float64:
        """Products of codes and scales (B, H, Q, S)."""
        rows, kv_heads, _, width = self.k.shape
        k = self.k.astype(np.float32)
        shown = self.common[:, None, :, None]
        share = np.float32(1) / shown.sum(2, keepdims=True, dtype=np.float32).clip(1)
        moved = k - np.where(shown, k, 0).sum(2, keepdims=True, dtype=np.float32) * share
        q = self.q.astype(np.float32).reshape(rows, -1, self.heads, width).transpose(0, 2, 1, 3)
        k_values = _rounded(moved, self.tops.k).repeat(self.heads // kv_heads, 1)
        scores: Float64 = _rounded(q, self.tops.q) @ k_values.swapaxes(2, 3) / width**0.5
        return scores


def _rounded(x: npt.NDArray[np.float32], top: int) -> Float64:
    """Vectors (…, K) in steps of their own scale."""
    scales = np.abs(x).max(-1, keepdims=True) * (np.float32(1) / np.float32(top))
    scales = np.maximum(scales, np.float32(LEAST_SCALE))
    codes = np.rint(x / scales).clip(-top - 1, top)
    steps: Float64 = codes.astype(np.float64) * scales.astype(np.float64)
    return steps


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of a case."""

    rows: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int


def random_case(
    rng: np.random.Generator, shape: AttentionShape, tops: AttentionTops, half: bool
) -> AttentionCase:
    """Random operands of which the mean key is exact, however it is summed.

    Keys are multiples of 1/64 below 8 and 2^n of them are common: no sum, share or difference has
    more bits than fp32. Values lie between two codes here and there, and beyond the last ones.
    """
    rows, queries, keys, width = shape.rows, shape.queries, shape.keys, shape.width
    kv_heads = shape.kv_heads
    centre = rng.integers(-192, 193, (kv_heads, 1, width))
    k = (rng.integers(-256, 257, (rows, kv_heads, keys, width)) + centre) / 64
    q = rng.normal(size=(rows, queries, shape.heads * width)) * rng.choice([0.1, 1, 4])
    q[rng.random((rows, queries)) < 0.1] = 0
    scale = 2.0 ** rng.uniform(-1, 3, (kv_heads, 1, 1, width)) / tops.v
    zero = rng.integers(0, tops.v + 1, scale.shape)
    v = rng.uniform(-1, 1, (rows, kv_heads, keys, width))
    steps = rng.integers(-tops.v, tops.v, v.shape) + 0.5
    dtype = np.float16 if half else np.float32
    scale = scale.astype(dtype)
    v = np.where(rng.random(v.shape) < 0.2, steps * scale.reshape(kv_heads, 1, width), v)
    visible, common = _masks(rng, rows, queries, keys)
    return AttentionCase(
        q.astype(dtype), k.astype(dtype), v.astype(dtype), visible, common,
        scale, zero.astype(dtype), shape.heads, tops,
    )  # fmt: skip


def _masks(rng: np.random.Generator, rows: int, queries: int, keys: int) -> tuple[Bools, Bools]:
    """Everybody, blocks, padding at the end, or hardly anybody; queries that see nothing; 2^n."""
    kind = rng.integers(4)
    visible = np.ones((rows, 1, queries, keys), np.bool_)
    if kind == 1:
        size = int(rng.integers(1, 40))
        at = np.arange(queries) + max(0, keys - queries)
        visible &= np.arange(keys) // size <= (at // size)[:, None]
    elif kind == 2:
        visible &= np.arange(keys) < rng.integers(0, keys + 1, (rows, 1, 1, 1))
    elif kind == 3:
        visible = rng.random(visible.shape) < 0.05
    visible[rng.random(visible.shape[:3]) < 0.05] = False
    common = np.zeros((rows, keys), np.bool_)
    for row in common:
        row[rng.permutation(keys)[: 2 ** int(rng.integers(0, keys.bit_length()))]] = True
    return visible, common
