"""Draws tokens at a temperature from the K best logits and the total mass of the others.

The graph returns K logits a position and `rest_t`, the mass of everything but the best. With that a
draw from the whole vocabulary is exact while it falls among the K, and one from a filtered
vocabulary (top_k, top_p) is exact when the filter keeps no more than the K. Other draws are made
among the K and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .session import Bools, Floats, Ints
from .settings import Settings

NEGLIGIBLE = 2.0**-24  # of the mass: what float32 sums of it lose anyway


@dataclass(frozen=True)
class Weights:
    """Masses relative to the best token, exp((l_j - l_1) / T), for n positions."""

    kept: Floats  # [n, K] descending, 0 where filtered; the first is 1
    tail: Floats  # [n] mass beyond the K, 0 with a filter
    whole: Bools  # [n] False where a filter may keep tokens beyond the K


def weigh(logits: Floats, rest_t: Floats, scale: float, settings: Settings) -> Weights:
    """Masses of `logits` [n, K], descending, at temperature `scale`, after top_p, then top_k.

    top_p keeps the smallest set of best tokens whose mass exceeds top_p (Dream's order and rule).
    Logits that are not finite carry no mass.
    """
    with np.errstate(invalid="ignore"):
        mass = np.exp((logits - logits[:, :1]) / scale)
    mass = np.nan_to_num(mass, nan=0.0, posinf=0.0)
    mass[:, 0] = 1.0
    others = mass[:, 1:].sum(1)
    rest_t = np.where(np.isfinite(rest_t), np.maximum(rest_t, others), others)
    top_p, top_k, count = settings.top_p, settings.top_k, logits.shape[1]
    share = np.cumsum(mass, 1) / (1 + rest_t)[:, None]
    tail = rest_t - others
    whole = tail <= NEGLIGIBLE * (1 + rest_t)
    tail[whole] = 0.0  # else what sums in another order differ by would count as mass
    if top_p is not None and top_p < 1:
        whole |= share[:, -1] > top_p
        mass[:, 1:][share[:, :-1] > top_p] = 0.0
    if top_k is not None:
        whole |= top_k <= count
        mass[:, top_k:] = 0.0
    if top_k is None and (top_p is None or top_p == 1):
        return Weights(mass, tail, np.ones_like(whole))
    return Weights(mass, np.zeros_like(tail), whole)


def pick(weights: Weights, uniform: Floats) -> tuple[Ints, Bools]:
    """The column [n] that each number of `uniform` [n] in [0, 1) selects, and whether it is exact.

    The inverse of the cumulative distribution. A number beyond the mass of the K is stretched over
    them again.
    """
    sums = np.cumsum(weights.kept, 1)
    inside = sums[:, -1] / (sums[:, -1] + weights.tail)
    beyond = uniform >= inside
    again = np.divide(uniform - inside, 1 - inside, out=np.zeros_like(uniform), where=inside < 1)
    goal = np.where(beyond, again, uniform / inside) * sums[:, -1]
    last = (weights.kept > 0).sum(1) - 1  # a product of numbers below 1 may still round up to all
    column = np.minimum((sums <= goal[:, None]).sum(1), last)
    return column, weights.whole & ~beyond


def odds_against(weights: Weights, column: Ints) -> Floats:
    """(1 - p) / p of the tokens in `column` [n]: the mass of all others over their own."""
    row = np.arange(len(column))
    own = weights.kept[row, column]
    others = weights.kept.copy()
    others[row, column] = 0.0
    odds: Floats = (others.sum(1) + weights.tail) / own
    return odds


def entropy(weights: Weights) -> tuple[Floats, Bools]:
    """Entropy in nats [n], and whether it is exact.

    Mass beyond the K is taken as spread over tokens like the K-th, which is a lower bound.
    """
    total = weights.kept.sum(1) + weights.tail
    p = weights.kept / total[:, None]
    tail = weights.tail / total
    floor = np.maximum(p[:, -1], np.finfo(float).tiny)
    sums = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1) - tail * np.log(floor)
    return sums, weights.whole & (tail <= NEGLIGIBLE)
