"""Two models on the same prompts: is one right more often, and by how much?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.agreement import wilson


@dataclass(frozen=True)
class Pairs:
    """Prompts counted by who answers them right."""

    both: int
    ours: int  # we alone
    theirs: int  # the other alone
    neither: int

    @property
    def count(self) -> int:
        return self.both + self.ours + self.theirs + self.neither

    @property
    def difference(self) -> float:
        """Our accuracy minus the other's."""
        return (self.ours - self.theirs) / self.count


def count_pairs(ours: Sequence[bool], theirs: Sequence[bool]) -> Pairs:
    """Counts of two lists in the same order of prompts."""
    seen = list(zip(ours, theirs, strict=True))
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return Pairs(*(seen.count(kind) for kind in kinds))


def mcnemar(pairs: Pairs) -> float:
    """Exact two-sided p-value of equal accuracies: who is right alone is a fair coin.

    McNemar (1947), with the binomial distribution in place of the normal one.
    """
    n, fewer = pairs.ours + pairs.theirs, min(pairs.ours, pairs.theirs)
    tail: float = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)


def difference_interval(pairs: Pairs) -> tuple[float, float]:
    """95 % interval of the difference of the accuracies.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based
    on paired data" (1998), method 10: Wilson intervals, correlated with continuity correction. It
    stays sound where no prompt, or every prompt, is answered right.
    """
    a, b, c, d, n = pairs.both, pairs.ours, pairs.theirs, pairs.neither, pairs.count
    p1, p2 = (a + b) / n, (a + c) / n
    (low1, high1), (low2, high2) = wilson(a + b, n), wilson(a + c, n)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    excess = a * d - b * c
    corrected = max(excess - n / 2, 0) if excess > 0 else excess
    phi = corrected / math.sqrt(margins) if margins else 0.0
    below = _spread(p1 - low1, high2 - p2, phi)
    above = _spread(high1 - p1, p2 - low2, phi)
    return pairs.difference - below, pairs.difference + above


def _spread(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))
