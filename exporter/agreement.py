"""How far two models are apart at single positions, and how sure one can be of a share."""

import math

import numpy as np

from exporter.runtime.session import Floats, Ints, Reductions


def log_probabilities(found: Reductions) -> Floats:
    """Natural log probabilities (…, K) of the top K."""
    l1, rest = found["l1"].astype(np.float64), found["rest"].astype(np.float64)
    return np.asarray(found["topk_logits"] - (l1 + np.log1p(rest))[..., None], np.float64)


def give_up(top_ids: Ints, top_logp: Floats, chosen: Ints, choices: Ints) -> Floats:
    """Regret (n,): probability of the ids `chosen` (n,) minus that of other `choices` (n,).

    Probabilities come from top ids and log probabilities (n, K); an id that is not listed has 0.
    """
    p = np.exp(top_logp)

    def of(ids: Ints) -> Floats:
        return np.asarray(np.where(top_ids == ids[:, None], p, 0.0).sum(1), np.float64)

    return of(chosen) - of(choices)


def divergence(p_ids: Ints, p_log: Floats, q_ids: Ints, q_log: Floats) -> float:
    """KL(p ‖ q) in nats over the ids that both list and one bin for the rest; at least 0."""
    _, i, j = np.intersect1d(p_ids, q_ids, return_indices=True)
    p, q = np.exp(p_log[i]), np.exp(q_log[j])
    p_rest, q_rest = max(1 - p.sum(), 0.0), max(1 - q.sum(), 1e-12)
    total = float((p * (p_log[i] - q_log[j])).sum())
    total += p_rest * math.log(p_rest / q_rest) if p_rest > 1e-12 else 0.0
    return max(total, 0.0)


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson, 1927)."""
    p, n = hits / count, count
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
