"""From reductions to candidates: one token for each open position, and how much it is doubted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import draw
from .bundle import ModelFacts
from .rules import margin_doubt, odds_of
from .session import Bools, Floats, Ints, Reductions
from .settings import Settings

Generators = list[np.random.Generator]


@dataclass(frozen=True)
class Candidates:
    """What could be committed, in ascending order of (row, position)."""

    rows: Ints  # [n] canvas row
    columns: Ints  # [n] place in the window
    ids: Ints  # [n] token
    doubt: Floats  # [n] see rules.py
    inexact: int  # how many do not follow the exact distribution


def wanted(settings: Settings) -> frozenset[str]:
    """The reductions that `candidates` reads."""
    names = {"id1", "rest"}
    if settings.reshapes:
        names |= {"l1", "rest_t", "topk_ids", "topk_logits"}
    elif settings.rule.doubt == "margin":
        names |= {"l1", "l2"}
    elif settings.rule.doubt == "entropy":
        names |= {"entropy"}
    if settings.rule.credited:
        names |= {"l1", "topk_ids", "topk_logits"}
    if settings.rule.held:
        names |= {"l1", "l_unseen" if settings.rule.shadowed else "l_held"}
    if settings.early_commit:
        names |= {"l1", "l2"}
    return frozenset(names)


def candidates(
    found: Reductions, open_: Bools, model: ModelFacts, settings: Settings, rngs: Generators
) -> Candidates:
    """Candidates for the places `open_` [B, W] of the window. Each row has its generator."""
    rows, columns = np.nonzero(open_)
    at = {name: array[rows, columns] for name, array in found.items() if name in wanted(settings)}
    rest = sure(at["rest"])
    inexact = 0
    if not settings.reshapes:
        ids, doubt = at["id1"].astype(np.int64), _doubt(at, rest, settings)
    else:
        ids, doubt, exact = _reshaped(at, rest, settings, _uniform(rngs, open_))
        inexact = int(len(exact) - np.count_nonzero(exact))
    if settings.rule.doubt == "random":
        doubt = _uniform(rngs, open_)
    elif settings.confidence_eos_inf:
        doubt = np.where(np.isin(ids, model.special_ids), np.inf, doubt)
    return Candidates(rows, columns, ids, doubt, inexact)


def doubt_of_held(found: Reductions) -> Floats:
    """The odds against the tokens that stand [B, W], by the plain distribution."""
    with np.errstate(invalid="ignore"):  # rows that were not fed hold infinity
        gap = found["l1"].astype(np.float64) - found["l_held"]
    return sure(odds_of(sure(found["rest"]), np.maximum(gap, 0.0)))


def sure(values: Floats) -> Floats:
    """As float64, with NaN turned into infinity: the least sure."""
    values = values.astype(np.float64)
    return np.where(np.isnan(values), np.inf, values)


def _doubt(at: Reductions, rest: Floats, settings: Settings) -> Floats:
    if settings.rule.doubt == "margin":
        return sure(margin_doubt(rest, at["l1"].astype(np.float64) - at["l2"]))
    return sure(at["entropy"]) if settings.rule.doubt == "entropy" else rest


def _reshaped(
    at: Reductions, rest: Floats, settings: Settings, uniform: Floats
) -> tuple[Ints, Floats, Bools]:
    """(ids, doubt, exact) [n] from the filtered distribution at the temperature.

    Samplers that are `drawn` take their confidence from that distribution (Dream, SDAR, LLaDA2),
    the others from the plain one, softmax(l) of the drawn token (LLaDA).
    """
    logits = at["topk_logits"].astype(np.float64)
    weights = draw.weigh(logits, at["rest_t"].astype(np.float64), scale(settings), settings)
    column, exact = np.zeros(len(rest), np.int64), weights.whole
    if settings.temperature > 0:
        column, exact = draw.pick(weights, uniform)
    n = np.arange(len(rest))
    ids = at["topk_ids"][n, column].astype(np.int64)
    if settings.rule.doubt == "margin":
        best = draw.odds_against(weights, np.zeros_like(column))
        ratio = np.maximum(weights.kept[:, 1], np.finfo(float).tiny)
        return ids, margin_doubt(best, -np.log(ratio)), exact
    if settings.rule.doubt == "entropy":
        doubt, known = draw.entropy(weights)
        return ids, doubt, exact & known
    if settings.rule.drawn:
        return ids, draw.odds_against(weights, column), exact
    gap = np.maximum(at["l1"] - logits[n, column], 0.0)
    return ids, sure(odds_of(rest, gap)), exact


def scale(settings: Settings) -> float:
    """The temperature that divides the logits; 0 stands for the arg-max and divides by 1."""
    return settings.temperature or 1.0


def _uniform(rngs: Generators, open_: Bools) -> Floats:
    """One number in [0, 1) for each open place, in order, from the generator of its row."""
    counts = open_.sum(1)
    return np.concatenate([rng.random(n) for rng, n in zip(rngs, counts, strict=True)])
