"""Which candidates of a row to commit: pure functions over small arrays.

`doubt` [n] orders the candidates of one row, in ascending position: smaller is surer, NaN and
infinity are the least sure. It is `rest`, the odds against, where a rule is about the probability
p = 1 / (1 + rest): a probability in float32 saturates at 1 and would reorder the commits.
Every rule returns indices into `doubt`, at least one; ties go to the lowest position. Whether a
threshold itself passes differs among the published rules: `strict` says p > threshold.
"""

from __future__ import annotations

import numpy as np

from .session import Bools, Floats, Ints


def surest(doubt: Floats, count: int) -> Ints:
    """The `count` smallest doubts, smallest first (LLaDA, arXiv 2502.09992; Dream)."""
    return np.argsort(doubt, kind="stable")[:count]  # NaN sorts last, after infinity


def leftmost(doubt: Floats, count: int) -> Ints:
    """The first `count` positions (SDAR's sequential order)."""
    return np.arange(min(count, len(doubt)))


def passing(rest: Floats, threshold: float, strict: bool) -> Bools:
    """Where p >= threshold, or p > threshold: p >= threshold <=> rest <= 1 / threshold - 1."""
    limit = 1 / threshold - 1
    with np.errstate(invalid="ignore"):
        return np.asarray(rest < limit if strict else rest <= limit)


def above_threshold(rest: Floats, threshold: float, strict: bool = False) -> Ints:
    """All that pass, and always the surest.

    Fast-dLLM (arXiv 2505.22618) and Nemotron-Labs-Diffusion with >=, Fast-dLLM v2 (arXiv
    2509.26328) with >.
    """
    taken = passing(rest, threshold, strict)
    taken[surest(rest, 1)] = True
    return np.flatnonzero(taken)


def capped(rest: Floats, threshold: float, most: int) -> Ints:
    """All with p > threshold, of more than `most` the surest, always the surest of all (WINO)."""
    taken = above_threshold(rest, threshold, strict=True)
    return taken if len(taken) <= most else surest(rest, most)


def revoked(held: Floats, threshold: float, most: int) -> Ints:
    """Tokens with p < threshold by the odds against them, the least sure of more than `most`.

    WINO (arXiv 2507.18578) with the numbers of its published loop.
    """
    unsure = np.flatnonzero(~passing(held, threshold, strict=False))
    order = np.argsort(-np.where(np.isnan(held), np.inf, held)[unsure], kind="stable")
    return unsure[order[: max(most, 0)]]


def threshold_or_quota(rest: Floats, threshold: float, quota: int) -> Ints:
    """All with p > threshold if these are at least the quota, otherwise the surest of the quota.

    SDAR's dynamic order (arXiv 2510.06303); LLaDA2.0 and 2.1.
    """
    taken = np.flatnonzero(passing(rest, threshold, strict=True))
    return taken if len(taken) >= max(quota, 1) else surest(rest, max(quota, 1))


def near_best(rest: Floats, threshold: float) -> Ints:
    """All with p >= min(threshold, p of the surest - 1e-5) (dInfer, arXiv 2510.08666)."""
    best = float(1 / (1 + rest[surest(rest, 1)])[0])
    limit = max(min(threshold, best - 1e-5), np.finfo(np.float64).tiny)
    taken = passing(rest, limit, strict=False)
    taken[surest(rest, 1)] = True
    return np.flatnonzero(taken)


def hierarchy(rest: Floats, positions: Ints, threshold: float, low_threshold: float) -> Ints:
    """The surest of each run of neighbouring masks if p > low_threshold, all with p > threshold,
    and the surest of all (dInfer's hierarchical decoding, arXiv 2510.08666).

    `positions` [n] of the candidates. Runs are parted by tokens that stand.
    """
    taken = passing(rest, threshold, strict=True)
    taken[surest(rest, 1)] = True
    borders = np.flatnonzero(np.diff(positions) > 1) + 1
    for run in np.split(np.arange(len(rest)), borders):
        best = run[surest(rest[run], 1)]
        taken[best] |= passing(rest[best], low_threshold, strict=True)
    return np.flatnonzero(taken)


def leap(
    rest: Floats, positions: Ints, threshold: float, low_threshold: float, radius: int
) -> Ints:
    """All with p >= threshold (anchors), and all within `radius` of one with p >= low_threshold;
    the surest where there is no anchor (LocalLeap, arXiv 2510.07081).
    """
    taken = passing(rest, threshold, strict=False)
    taken[surest(rest, 1)] = True
    anchors = positions[passing(rest, threshold, strict=False)]
    near = (np.abs(positions[:, None] - anchors) <= radius).any(1)
    return np.flatnonzero(taken | (near & passing(rest, low_threshold, strict=False)))


def apart(rest: Floats, positions: Ints, threshold: float, quota: int) -> Ints:
    """Up to `quota`, from the surest on, none beside another unless p >= threshold.

    The adjacency rule of LFM2.5 diffusion: neighbours that are committed in one call were
    predicted without knowing each other.
    """
    sure = passing(rest, threshold, strict=False)
    taken: list[int] = []
    for place in surest(rest, len(rest)):
        beside = any(abs(positions[place] - positions[other]) == 1 for other in taken)
        if len(taken) < max(quota, 1) and (sure[place] or not beside):
            taken.append(int(place))
    return np.asarray(taken)


def within_factor(rest: Floats, factor: float) -> Ints:
    """The surest n for the factor rule of Fast-dLLM.

    The walk goes from the surest on. The n-th (from 1) passes when p >= 1 - factor / (n + 1), the
    first always; the walk stops at the first failure or at the last candidate. Those before the
    stop are taken, and the last candidate also when the walk reached it, passed or not (upstream).
    """
    order = surest(rest, len(rest))
    need = 1 - factor / (np.arange(len(rest)) + 2.0)
    limit = np.full(len(rest), np.inf)  # of the odds; need <= 0 lets every p pass
    np.divide(1, need, out=limit, where=need > 0)
    passes = np.where(np.isnan(rest), np.inf, rest)[order] <= limit - 1
    passes[0] = True
    stop = len(rest) - 1 if passes.all() else int(np.argmin(passes))
    return order[: stop + 1] if stop == len(rest) - 1 else order[:stop]


def within_entropy(entropy: Floats, gamma: float) -> Ints:
    """The n of smallest entropy H whose sum without the largest is at most gamma, at least one.

    EB-Sampler (arXiv 2505.24857): with H ascending, the sum of the first n minus H_n bounds what
    is lost when n tokens are predicted apart. Nats. SDAR's entropy-bounded order means the same.
    """
    order = surest(entropy, len(entropy))
    known = np.where(np.isfinite(entropy), np.maximum(entropy, 0.0), 2 * gamma)
    before = np.concatenate([[0.0], np.cumsum(known[order])[:-1]])
    return order[before <= gamma]


def margin_doubt(rest: Floats, gap: Floats) -> Floats:
    """1 - (p1 - p2) without cancellation, from the odds and the gap l1 - l2 >= 0.

    p1 = 1 / (1 + rest), p2 = exp(-gap) p1, so it is (rest + exp(-gap)) / (1 + rest).
    """
    known = np.isfinite(rest)
    rest = np.where(known, rest, 0.0)
    return np.where(known, (rest + np.exp(-gap)) / (1 + rest), np.inf)


def odds_of(rest: Floats, gap: Floats) -> Floats:
    """The odds against a token whose logit lies `gap` >= 0 below the best, from the best's `rest`.

    p = exp(-gap) / (1 + rest), so (1 - p) / p = rest exp(gap) + exp(gap) - 1.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(rest * np.exp(gap) + np.expm1(gap))


def confidence(doubt: Floats, kind: str) -> Floats:
    """p, p1 - p2 or minus the entropy from what a sampler doubts by: odds, margin, entropy."""
    if kind == "margin":
        return 1 - doubt
    return -doubt if kind == "entropy" else 1 / (1 + doubt)


def weighted(confidence: Floats, alg_temp: float, count: int, rng: np.random.Generator) -> Ints:
    """`count` candidates drawn without replacement by softmax(confidence / alg_temp) (Dream).

    Taking the largest sums of log-weight and Gumbel noise is the same as drawing one after the
    other.
    """
    keys = confidence / alg_temp + rng.gumbel(size=len(confidence))
    return surest(-keys, count)
