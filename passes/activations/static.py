"""One scale for all inputs of a linear, found by calibration: nothing to measure at run time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from passes.activations.grid import LEAST_SCALE, ActivationGrid, fake_quantize
from passes.base import Block, LinearGroup, Stats, seen_enough

BINS = 2**16  # of the histogram that percentiles are read from: 512 to a step of 8 bits
CLIPS = tuple(step / 50 for step in range(50, 0, -1))  # shares of the largest value, 1 … 0.02


@dataclass(frozen=True)
class StaticScales:
    """Calibrate every group whose activations have one scale a tensor.

    `cover` says what the grid reaches: the largest value times its clip ("max"), a share of the
    values (such as 0.9999), or what makes the squared error least, each token with its weight
    squared ("mse").
    """

    cover: Literal["max", "mse"] | float = "max"

    def __post_init__(self) -> None:
        if not isinstance(self.cover, str) and not 0 < self.cover <= 1:
            raise ValueError(f"a share of the values is between 0 and 1, not {self.cover}")

    def __call__(self, block: Block, /) -> Stats:
        """Groups are taken in order: each sees inputs behind the static scales of those before it.

        A group that saw hardly a token has a scale a token instead, found at run time. Stats:
        `groups`, the mean share of the largest value that the scales reach, and `unseen` groups.
        """
        shares, unseen = [], 0
        for group in block.groups:
            grid = group.activation
            if grid is None or grid.granularity != "tensor":
                continue
            if seen_enough(block, group):
                shares.append(self.calibrate(block, group, grid))
            else:
                block.quantize_inputs(group, replace(grid, granularity="token"))
                unseen += 1
        covered = sum(shares) / max(len(shares), 1)
        return {"groups": len(shares), "covered": covered, "unseen": unseen}

    def calibrate(self, block: Block, group: LinearGroup, grid: ActivationGrid) -> float:
        """Set the scale of one group; the share of its largest value that it reaches."""
        largest = max(block.team.collect(largest_value(block, group)))
        if largest == 0:
            share = 1.0
        elif self.cover == "max":
            share = grid.clip
        elif self.cover == "mse":
            share = least_error(block, group, grid, largest)
        else:
            share = quantile(block, group, self.cover, largest)
        block.quantize_inputs(group, with_scale(grid, largest, share))
        return share


def with_scale(grid: ActivationGrid, largest: float, share: float) -> ActivationGrid:
    """The grid that reaches `share` of the largest value; its scale is an fp32 value."""
    scale = torch.tensor(largest * share / grid.top, dtype=torch.float32).clamp_min(LEAST_SCALE)
    return replace(grid, scale=scale.item())


def tokens(block: Block, group: LinearGroup) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs (T, in) of a group and token weights (T,), without padding."""
    for x, w in block.inputs(group):
        yield x[w > 0], w[w > 0]


def largest_value(block: Block, group: LinearGroup) -> float:
    """The largest |x| of this process's share; 0 where it has none."""
    return max((float(x.abs().max()) for x, _ in tokens(block, group) if len(x)), default=0.0)


def least_error(block: Block, group: LinearGroup, grid: ActivationGrid, largest: float) -> float:
    """The share of CLIPS with the least `sum_t w_t^2 |q(x_t) - x_t|^2`, of equal ones the first."""
    device = block.weight(group.linears[0]).device
    losses = torch.zeros(len(CLIPS), dtype=torch.float64, device=device)
    for x, w in tokens(block, group):
        for index, share in enumerate(CLIPS):
            error = fake_quantize(x, with_scale(grid, largest, share)) - x
            losses[index] += (error * w[:, None]).square().sum(dtype=torch.float64)
    block.team.sum(losses)
    return CLIPS[int(losses.argmin())]


def quantile(block: Block, group: LinearGroup, share: float, largest: float) -> float:
    """The least of BINS equal steps up to `largest` below which lie `share` of all |x|, over it."""
    counts = torch.zeros(BINS, dtype=torch.int64, device=block.weight(group.linears[0]).device)
    for x, _ in tokens(block, group):
        bins = (x.abs().flatten() * (BINS / largest)).long().clamp_(max=BINS - 1)
        counts += torch.bincount(bins, minlength=BINS)
    block.team.sum(counts)
    wanted = share * float(counts.sum())
    return (int((counts.cumsum(0) < wanted).sum()) + 1) / BINS
