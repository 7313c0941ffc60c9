"""Which candidates of a row to commit: pure functions over small arrays.

`doubt` [n] orders the candidates of one row, in ascending position: smaller is surer, NaN and
infinity are the least sure. It is `rest`, the odds against, where a rule is about the probability
p = 1 / (1 + rest): a probability in float32 saturates at 1 and would reorder the commits.
Every rule returns indices into `doubt`, at least one; ties go to the lowest position.
"""

from __future__ import annotations

import numpy as np

from .session import Floats, Ints
from .settings import Settings


def surest(doubt: Floats, count: int) -> Ints:
    """The `count` smallest doubts, smallest first."""
    return np.argsort(doubt, kind="stable")[:count]  # NaN sorts last, after infinity


def above_threshold(rest: Floats, threshold: float) -> Ints:
    """All with p >= threshold, and always the surest (Fast-dLLM, arXiv 2505.22618).

    p >= threshold <=> rest <= 1 / threshold - 1.
    """
    passing = rest <= 1 / threshold - 1
    passing[surest(rest, 1)] = True
    return np.flatnonzero(passing)


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


def margin_doubt(rest: Floats, gap: Floats) -> Floats:
    """1 - (p1 - p2) without cancellation, from the odds and the gap l1 - l2 >= 0.

    p1 = 1 / (1 + rest), p2 = exp(-gap) p1, so it is (rest + exp(-gap)) / (1 + rest).
    """
    known = np.isfinite(rest)
    rest = np.where(known, rest, 0.0)
    return np.where(known, (rest + np.exp(-gap)) / (1 + rest), np.inf)


def weighted(doubt: Floats, count: int, settings: Settings, rng: np.random.Generator) -> Ints:
    """`count` candidates drawn without replacement by softmax(confidence / alg_temp) (Dream).

    The confidence is p, p1 - p2 or minus the entropy. Taking the largest sums of log-weight and
    Gumbel noise is the same as drawing one after the other.
    """
    assert settings.alg_temp
    keys = _confidence(doubt, settings.sampler) / settings.alg_temp + rng.gumbel(size=len(doubt))
    return surest(-keys, count)


def _confidence(doubt: Floats, sampler: str) -> Floats:
    if sampler == "maskgit-plus":
        return 1 / (1 + doubt)
    return 1 - doubt if sampler == "topk-margin" else -doubt
