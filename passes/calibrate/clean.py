"""Calibration on finished sequences with nothing masked, as for models that predict left to right.

Published GPTQ and AWQ results on diffusion LLMs are calibrated on text like this (arXiv 2508.14896,
section 4.1). A model never meets such a sequence while it decodes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from passes.base import Stats
from passes.calibrate.states import State


@dataclass(frozen=True)
class Clean:
    """Draw `samples` of the sequences that roll-outs ended with."""

    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be positive: {self!r}")

    def __call__(self, pool: Sequence[State], /) -> tuple[list[State], Stats]:
        """States by prompt; all finished ones when there are fewer. Independent of order."""
        ends = finished(pool)
        count = min(self.samples, len(ends))
        chosen = sorted(random.Random(self.seed).sample(range(len(ends)), count))
        return [ends[i] for i in chosen], {"taken": count, "missing": self.samples - count}


def finished(pool: Sequence[State]) -> list[State]:
    """The states that roll-outs ended with, by prompt; ValueError where there is none."""
    ends = sorted((state for state in pool if state.finished), key=lambda state: state.prompt)
    if not ends:
        raise ValueError(f"none of {len(pool)} calibration states is a finished sequence")
    return ends
