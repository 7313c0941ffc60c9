"""Credit: what a position kept predicting in earlier calls counts for it in later ones.

CreditDecoding (arXiv 2510.06133), with the order of dInfer's loop. Each call of a block multiplies
the credits of a position by beta and adds p^gamma to that of its best token; logits become
l + alpha log(1 + credit). Only tokens that were once the best have credit, so the best K logits and
`rest` are enough: the fused best token is among the credited ones, and its odds are those sums with
a few terms replaced. A credited token that has left the best K is passed over, and counted, because
its logit is unknown; it is at most the last of the K, and its part of the sums at most that.
"""

from __future__ import annotations

import numpy as np

from .candidates import sure
from .plan import Call
from .session import Array, Ints, Reductions
from .settings import Settings


class Credits:
    """The credits of one run, kept for the block that is being filled."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._block = -1
        self._of: dict[tuple[int, int], dict[int, float]] = {}  # (row, position): token: credit

    def fuse(self, found: Reductions, call: Call, window: Ints) -> tuple[Reductions, int]:
        """`found` with `id1`, `l1` and `rest` [B, W] as credit makes them where `call` is open.

        And at how many of these places a credited token is not among the best K. The first token of
        a block that is predicted from the blocks before it has no credit.
        """
        if call.seeds:
            return found, 0
        if call.block != self._block:
            self._block, self._of = call.block, {}
        fused = {**found, **{n: found[n].copy() for n in ("id1", "l1", "rest")}}
        fused["rest"], unknown = sure(fused["rest"]), 0
        for row, place in zip(*np.nonzero(call.open[:, window]), strict=True):
            credit = self._of.setdefault((int(row), int(window[place])), {})
            at = {name: array[row, place] for name, array in found.items()}
            best = self._update(credit, at, float(fused["rest"][row, place]))
            fused["id1"][row, place], fused["l1"][row, place], fused["rest"][row, place] = best
            unknown += not credit.keys() <= set(at["topk_ids"].tolist())
        return fused, unknown

    def _update(
        self, credit: dict[int, float], at: dict[str, Array], rest: float
    ) -> tuple[int, float, float]:
        """The fused best token, its logit, and the odds against it; `credit` is brought up to date.

        At a position where nothing is known (infinite odds) everything stays as it is.
        """
        first, l1 = int(at["id1"]), float(at["l1"])
        if not np.isfinite(rest):
            return first, l1, rest
        settings = self._settings
        for token in credit:
            credit[token] *= settings.credit_beta
        credit[first] = credit.get(first, 0.0) + (1 / (1 + rest)) ** settings.credit_gamma
        known = dict(zip(at["topk_ids"].tolist(), at["topk_logits"].tolist(), strict=True))
        gains = {i: settings.credit_alpha * np.log1p(c) for i, c in credit.items() if i in known}
        best = min(gains, key=lambda i: (-(known[i] + gains[i]), i))
        # masses relative to the plain best token; all but `best` as they are, and what credit adds
        others = rest if best == first else 1 + max(rest - np.exp(known[best] - l1), 0.0)
        added = sum(np.exp(known[i] - l1) * np.expm1(g) for i, g in gains.items() if i != best)
        logit = known[best] + gains[best]
        return best, logit, float((others + added) * np.exp(min(l1 - logit, 0.0)))
