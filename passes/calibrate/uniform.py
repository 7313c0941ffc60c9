"""The null hypothesis of TMAS: calibration states drawn evenly from all that were visited."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from passes.base import Stats
from passes.calibrate.states import State, digest


@dataclass(frozen=True)
class Uniform:
    """Draw `samples` states of the pool, each with the same chance."""

    samples: int = 128
    seed: int = 0

    def __call__(self, pool: Sequence[State], /) -> tuple[list[State], Stats]:
        """States by (prompt, step); the whole pool when it holds fewer. Independent of order."""
        visited = (state for state in pool if not state.finished)
        ordered = sorted(visited, key=lambda state: (state.prompt, state.step, digest([state])))
        count = min(self.samples, len(ordered))
        chosen = sorted(random.Random(self.seed).sample(range(len(ordered)), count))
        return [ordered[i] for i in chosen], {"taken": count, "missing": self.samples - count}
