"""Times calls: warm-up, rounds, median and quartiles."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP = 3  # calls: an engine is run, recorded and replayed in its first three


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some rounds."""

    median: float
    lower: float
    upper: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value; linear between neighbours."""
        lower, median, upper = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
        return cls(median, lower, upper, len(values))


def milliseconds(call: Callable[[], object], rounds: int) -> Spread:
    """Of the wall clock, a call after the other, the first WARM_UP of them not counted."""
    for _ in range(WARM_UP):
        call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return Spread.of(taken)
