"""QuantEase (arXiv 2309.01885): improve rounded weights one column at a time, in sweeps.

The error of a linear's output is quadratic in each column of the weight while the others are held,
so the best grid point for it is known. Going over all columns again and again (cyclic coordinate
descent) never makes the error larger. It takes the same Hessian as GPTQ, with the same token
weights.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from passes.base import Block, Stats
from passes.numerics import QuantizedLinear, WeightGrid, expand
from passes.weights.gptq import solve
from passes.weights.hessian import factorize
from passes.weights.layerwise import Solver, quantize_groups
from passes.weights.rtn import round_to_nearest


@dataclass(frozen=True)
class QuantEase:
    """Quantize every linear of a block by coordinate descent from rounded weights.

    Scales stay those of the start. The paper begins with the float weight and lets some sweeps go
    unrounded; here every step is on the grid, so that the error never exceeds that of the start.
    """

    iterations: int = 20  # sweeps over all columns, fewer if no code changes any more
    start: Literal["rtn", "gptq"] = "gptq"
    damping: float = 0.01  # of the GPTQ start; the descent itself needs none
    block: int = 128  # columns after which errors are carried on to the rest of the weight

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.damping <= 0 or self.block < 1:
            raise ValueError(f"iterations, damping and block must be positive: {self!r}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats: see `quantize_groups`."""
        return quantize_groups(block, self.prepare)

    def prepare(self, hessian: Tensor) -> Solver:
        """The solver for one Hessian (in, in)."""
        factor = factorize(hessian, self.damping, False) if self.start == "gptq" else None

        def run(rows: Tensor, grid: WeightGrid) -> QuantizedLinear:
            first = (
                solve(rows, factor, grid, self.block) if factor else round_to_nearest(rows, grid)
            )
            return descend(rows, first, hessian, grid, self.iterations, self.block)

        dead = int((hessian.diagonal() == 0).sum())
        return Solver(run, dead, factor.retries if factor else 0)


def descend(
    weight: Tensor,
    start: QuantizedLinear,
    hessian: Tensor,
    grid: WeightGrid,
    iterations: int,
    block: int = 128,
) -> QuantizedLinear:
    """Coordinate descent on `tr(D H D^T)`, D = weight - approximation, from `start` (out, in).

    Column j of the approximation becomes the grid point next to itself plus `(D H)_j / H_jj`
    (arXiv 2309.01885, equation 8). Columns that no token ever touched stay as they are.
    """
    width = weight.shape[1]
    # Transposed, so that a column is contiguous: (in, out). H is symmetric.
    scales = expand(start.scales, start.group, width).T.contiguous()
    codes = start.codes.T.float().contiguous()
    left = weight.T - codes * scales
    diagonal = hessian.diagonal().tolist()
    for _ in range(iterations):
        changes = 0
        for first in range(0, width, block):
            span = slice(first, min(first + block, width))
            before = codes[span].clone()
            slope = hessian[span] @ left  # (D H)^T of these columns
            for at in range(span.start, span.stop):
                if diagonal[at] == 0:
                    continue
                value = (codes[at] * scales[at]).add_(slope[at - first], alpha=1 / diagonal[at])
                code = grid.round(value, scales[at])
                step = (code - codes[at]).mul_(scales[at])
                slope[at - first + 1 :].addr_(hessian[at, at + 1 : span.stop], step, alpha=-1)
                codes[at] = code
            left[span] = weight.T[span] - codes[span] * scales[span]
            changes += int((codes[span] != before).sum())
        if changes == 0:
            break
    return QuantizedLinear(
        codes.T.to(torch.int8).contiguous(), start.scales, start.bits, start.group, start.channel
    )
