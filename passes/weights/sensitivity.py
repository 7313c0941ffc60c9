"""How much each group of linears matters: the error of the block's output when it alone is rounded.

It orders the groups for mixed precision (`passes.weights.allocation`). A group is measured with all
others in float, so that one pass over a block is enough; what errors do to each other is left to
the measurement of the whole model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from passes.base import Block, LinearGroup, Stats
from passes.numerics import WeightGrid
from passes.weights.rtn import round_to_nearest


class WholeBlock(Block, Protocol):
    """A block that also shows what leaves it."""

    def outputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Calibration outputs, with what was replaced so far: (T, D) and token weights (T,)."""
        ...


@dataclass(frozen=True)
class Sensitivity:
    """Round the linears of each group in turn to `grid`; the block is left as it was."""

    grid: WeightGrid

    def __call__(self, block: WholeBlock, /) -> Stats:
        """By group name, `sum_t w_t^2 |y'_t - y_t|^2 / sum_t w_t^2 |y_t|^2` of the block output y.

        Nothing may be quantized yet. Tokens of weight 0 are left out.
        """
        before = [weighted(y, w) for y, w in block.outputs()]
        return {group.name: self.measure(block, group, before) for group in block.groups}

    def measure(self, block: WholeBlock, group: LinearGroup, before: list[Tensor]) -> float:
        """The error of one group, over all processes; `before` are the weighted float outputs."""
        floats = {name: block.weight(name) for name in group.linears}
        for name, weight in floats.items():
            block.set(name, round_to_nearest(weight, self.grid).dequantize())
        sums = torch.zeros(2, dtype=torch.float64, device=next(iter(floats.values())).device)
        for y, (rounded, w) in zip(before, block.outputs(), strict=True):
            sums[0] += (weighted(rounded, w) - y).square().sum(dtype=torch.float64)
            sums[1] += y.square().sum(dtype=torch.float64)
        for name, weight in floats.items():
            block.set(name, weight)
        block.team.sum(sums)
        return float(sums[0] / sums[1]) if sums[1] else 0.0


def weighted(y: Tensor, w: Tensor) -> Tensor:
    """Rows of y (T, D) that are no padding, times their weights w (T,)."""
    seen = w != 0
    return y[seen] * w[seen, None]
