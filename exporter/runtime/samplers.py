"""The table of samplers: how each published rule takes its turns, and what it reads.

A row says which schedule opens positions (plan.py), which candidates are taken (rules.py), what
they are ordered by (candidates.py), and the numbers that upstream uses where the user gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from . import rules
from .session import Floats, Ints

if TYPE_CHECKING:
    from .settings import Settings


@dataclass(frozen=True)
class Offer:
    """The candidates of one row in ascending position, and the numbers of a rule."""

    doubt: Floats  # [n] by the sampler's own measure
    positions: Ints  # [n]
    quota: int
    settings: Settings
    rng: np.random.Generator

    def limit(self, name: str) -> float:
        """The setting `name`, or what the sampler has where it is None."""
        return self.settings.limit(name)

    def of(self, places: Ints) -> Offer:
        """The part of the offer at some of its places."""
        return replace(self, doubt=self.doubt[places], positions=self.positions[places])


Take = Callable[[Offer], Ints]


@dataclass(frozen=True)
class Sampler:
    """One row. `schedule` names a function in plan.py.

    `doubt` is what candidates are ordered by: `odds` against the token, `margin` 1 - (p1 - p2),
    `entropy` in nats, or `random`. `drawn`: at a temperature confidences come from the filtered
    distribution that tokens are drawn from, else from the plain one. `finishes`: early stop waits
    for the end of the block, unless told otherwise. `stores`: upstream spends a call on storing the
    prompt and each block. `reads` are the settings that mean something to it, beside those that
    mean something to all; `limits` their defaults where samplers differ.
    """

    schedule: str
    take: Take
    reads: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    doubt: str = "odds"
    drawn: bool = False
    finishes: bool = False
    stores: bool = False
    revises: bool = False  # tokens that stand may be replaced
    held: bool = False  # by the mask, and are looked at with their own probability
    shadowed: bool = False  # which a shadow of the block predicts (shadow.py)
    credited: bool = False  # what a position predicted before counts
    grows: bool = False  # the length of the answer is found on the way
    by_canvas: bool = False  # knows no blocks
    stand_in: str = ""  # what calibration and gate roll out with, where states must have one shape


def _surest(offer: Offer) -> Ints:
    return rules.surest(offer.doubt, offer.quota)


def _share(offer: Offer) -> Ints:
    alg_temp = offer.settings.alg_temp
    if alg_temp:
        sure = rules.confidence(offer.doubt, offer.settings.rule.doubt)
        return rules.weighted(sure, alg_temp, offer.quota, offer.rng)
    return _surest(offer)


def _above(offer: Offer) -> Ints:
    return rules.above_threshold(offer.doubt, offer.limit("threshold"))


def _strictly_above(offer: Offer) -> Ints:
    return rules.above_threshold(offer.doubt, offer.limit("threshold"), strict=True)


def _near_best(offer: Offer) -> Ints:
    return rules.near_best(offer.doubt, offer.limit("threshold"))


def _capped(offer: Offer) -> Ints:
    return rules.capped(offer.doubt, offer.limit("threshold"), offer.quota)


def _hierarchy(offer: Offer) -> Ints:
    low = offer.limit("low_threshold")
    return rules.hierarchy(offer.doubt, offer.positions, offer.limit("threshold"), low)


def _leap(offer: Offer) -> Ints:
    low, radius = offer.limit("low_threshold"), offer.settings.radius
    return rules.leap(offer.doubt, offer.positions, offer.limit("threshold"), low, radius)


def _apart(offer: Offer) -> Ints:
    return rules.apart(offer.doubt, offer.positions, offer.limit("threshold"), offer.quota)


def _factor(offer: Offer) -> Ints:
    return rules.within_factor(offer.doubt, offer.settings.factor)


def _entropy(offer: Offer) -> Ints:
    return rules.within_entropy(offer.doubt, offer.limit("gamma"))


def _leftmost(offer: Offer) -> Ints:
    return rules.leftmost(offer.doubt, offer.quota)


def _threshold_or_quota(offer: Offer) -> Ints:
    return rules.threshold_or_quota(offer.doubt, offer.limit("threshold"), offer.quota)


def _all(offer: Offer) -> Ints:
    return np.arange(len(offer.doubt))


BLOCKS = ("block_length",)
QUOTA = (*BLOCKS, "steps")
SHARES = ("steps", "eps", "early_commit")

SAMPLERS: Mapping[str, Sampler] = {
    # LLaDA: an even number of tokens a call
    "low-confidence": Sampler("even", _surest, (*QUOTA, "early_commit")),
    "leftmost": Sampler("even", _leftmost, QUOTA),  # a policy of vLLM's Nemotron
    "random": Sampler("even", _surest, (*QUOTA, "early_commit"), doubt="random"),
    "lfm-adjacency": Sampler("at-most", _apart, (*QUOTA, "threshold"), {"threshold": 0.9}),
    # Fast-dLLM and what came after it: the rule decides how many
    "threshold": Sampler("until-full", _above, (*BLOCKS, "threshold"), {"threshold": 0.9}),
    "factor": Sampler("until-full", _factor, (*BLOCKS, "factor")),
    "dinfer-threshold": Sampler(
        "until-full", _near_best, (*BLOCKS, "threshold"), {"threshold": 0.9}
    ),
    "credit": Sampler(
        "until-full",
        _near_best,
        (*BLOCKS, "threshold", "credit_alpha", "credit_beta", "credit_gamma"),
        {"threshold": 0.9},
        credited=True,
        stand_in="dinfer-threshold",
    ),
    "dinfer-hierarchy": Sampler(
        "until-full",
        _hierarchy,
        (*BLOCKS, "threshold", "low_threshold"),
        {"threshold": 0.9, "low_threshold": 0.4},
    ),
    "local-leap": Sampler(
        "until-full",
        _leap,
        (*BLOCKS, "threshold", "low_threshold", "radius"),
        {"threshold": 0.9, "low_threshold": 0.75},
    ),
    "entropy-bounded": Sampler(
        "until-full", _entropy, (*BLOCKS, "gamma"), {"gamma": 0.1}, doubt="entropy", drawn=True
    ),
    "daedal": Sampler(
        "growing",
        _strictly_above,
        (
            *BLOCKS,
            "threshold",
            "low_threshold",
            "initial_length",
            "growth",
            "eos_threshold",
            "eos_window",
        ),
        {"threshold": 0.9, "low_threshold": 0.1},
        grows=True,
        stand_in="threshold",
    ),
    "wino": Sampler(
        "revoking",
        _capped,
        (*BLOCKS, "threshold", "keep_threshold"),
        {"threshold": 0.6},
        finishes=True,
        revises=True,
        held=True,
        shadowed=True,
    ),
    "nemotron": Sampler("in-steps", _above, (*QUOTA, "threshold"), {"threshold": 0.9}),
    "fast-dllm-v2": Sampler(
        "sub-blocks",
        _strictly_above,
        (*BLOCKS, "sub_block_length", "threshold"),
        {"threshold": 0.9},
        drawn=True,
        finishes=True,
    ),
    # SDAR and LLaDA2: block-causal models
    "sdar-static": Sampler("block-quota", _surest, QUOTA, drawn=True, finishes=True, stores=True),
    "sdar-dynamic": Sampler(
        "block-quota",
        _threshold_or_quota,
        (*QUOTA, "threshold"),
        {"threshold": 0.85},
        drawn=True,
        finishes=True,
        stores=True,
    ),
    "sdar-sequential": Sampler(
        "block-quota", _leftmost, QUOTA, drawn=True, finishes=True, stores=True
    ),
    "sdar-entropy": Sampler(
        "until-full",
        _entropy,
        (*BLOCKS, "gamma"),
        {"gamma": 0.35},
        doubt="entropy",
        drawn=True,
        finishes=True,
        stores=True,
    ),
    "llada2-threshold": Sampler(
        "block-quota",
        _threshold_or_quota,
        (*QUOTA, "threshold", "minimal_topk"),
        {"threshold": 0.95},
        drawn=True,
        finishes=True,
    ),
    "llada2-edit": Sampler(
        "editing",
        _threshold_or_quota,
        (*BLOCKS, "threshold", "editing_threshold", "max_post_steps", "num_to_transfer"),
        {"threshold": 0.95},
        drawn=True,
        finishes=True,
        revises=True,
    ),
    # Dream: a share of the masks of the whole canvas
    "maskgit-plus": Sampler("shares", _share, (*SHARES, "alg_temp"), drawn=True, by_canvas=True),
    "topk-margin": Sampler(
        "shares", _share, (*SHARES, "alg_temp"), doubt="margin", drawn=True, by_canvas=True
    ),
    "entropy": Sampler(
        "shares", _share, (*SHARES, "alg_temp"), doubt="entropy", drawn=True, by_canvas=True
    ),
    "origin": Sampler("lotteries", _all, ("steps", "eps"), by_canvas=True),
    "p2": Sampler(
        "remasking", _surest, ("steps",), finishes=True, held=True, revises=True, by_canvas=True
    ),
}

BLOCK_SAMPLERS = tuple(name for name, row in SAMPLERS.items() if not row.by_canvas)
CANVAS_SAMPLERS = tuple(name for name, row in SAMPLERS.items() if row.by_canvas)
