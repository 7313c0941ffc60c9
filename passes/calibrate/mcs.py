"""Masked calibration of Quant-dLLM (arXiv 2510.03274): finished sequences, masked at random.

The beginning of an answer stays visible, and every other token of it is masked with a probability
t. Over the samples t takes every value of a uniform grid, so that all mask ratios are met, if not
in the way in which decoding meets them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passes.base import Stats
from passes.calibrate.clean import finished
from passes.calibrate.states import State


@dataclass(frozen=True)
class Mcs:
    """Mask the finished sequences of a pool, `samples` times, all prompts about as often."""

    samples: int = 128
    visible: float = 0.25  # share of an answer that is never masked, from its beginning
    levels: int = 16  # T: probabilities 1 / T, 2 / T … 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.levels < 1 or not 0 <= self.visible < 1:
            raise ValueError(f"samples and levels must be positive, visible below 1: {self!r}")

    def __call__(self, pool: Sequence[State], /) -> tuple[list[State], Stats]:
        """States by (prompt, step), where step is the number of the sample.

        The choice depends on what the pool holds and the seed, not on its order. Stats: `taken` and
        the mean `mask_ratio` over the generated positions.
        """
        ends, answers, mask_id = finished(pool), generated(pool), find_mask_id(pool)
        draw = random.Random(self.seed)
        draw.shuffle(ends)
        levels = [1 + number % self.levels for number in range(self.samples)]
        draw.shuffle(levels)
        states = []
        for number, level in enumerate(levels):
            end = ends[number % len(ends)]
            is_mask = self.mask(answers[end.prompt], level / self.levels, draw)
            states.append(
                replace(
                    end,
                    ids=end.ids.masked_fill(is_mask, mask_id),
                    is_mask=is_mask,
                    step=number,
                    mask_ratio=float(is_mask.sum() / answers[end.prompt].sum()),
                    finished=False,
                )
            )
        mean = sum(state.mask_ratio for state in states) / len(states)
        order = sorted(states, key=lambda state: (state.prompt, state.step))
        return order, {"taken": len(states), "mask_ratio": mean}

    def mask(self, answer: Tensor, probability: float, draw: random.Random) -> Tensor:
        """Which positions (S,) to mask, given those of the answer (S,)."""
        places = answer.nonzero()[:, 0].tolist()
        chosen = torch.zeros_like(answer)
        for place in places[int(self.visible * len(places)) :]:
            chosen[place] = draw.random() < probability
        return chosen


def generated(pool: Sequence[State]) -> dict[int, Tensor]:
    """By prompt, the positions (S,) that were ever masked: those that the model was to fill."""
    found: dict[int, Tensor] = {}
    for state in pool:
        before = found.get(state.prompt)
        found[state.prompt] = state.is_mask if before is None else before | state.is_mask
    return found


def find_mask_id(pool: Sequence[State]) -> int:
    """The id of a masked position; ValueError where nothing was ever masked."""
    for state in pool:
        if state.is_mask.any():
            return int(state.ids[state.is_mask][0])
    raise ValueError(f"none of {len(pool)} calibration states has a masked position")
