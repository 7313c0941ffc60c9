"""GPTQ (arXiv 2210.17323): round column by column, and let later columns make up for the error.

With token weights of CGQ in the Hessian it is the weight part of DLLMQuant (arXiv 2508.14090).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from passes.base import Block, Stats
from passes.numerics import QuantizedLinear, WeightGrid, group_count
from passes.weights.hessian import Factor, factorize
from passes.weights.layerwise import Solver, quantize_groups


@dataclass(frozen=True)
class Gptq:
    """Quantize every linear of a block so that its output over the calibration tokens stays close.

    Groups of linears are taken in order; each sees the inputs that the quantized ones before it
    produce.
    """

    act_order: bool = False  # take columns of large input first; scales of the original weight
    damping: float = 0.01  # added to the diagonal, in units of its mean
    block: int = 128  # columns after which the rest of the weight is updated

    def __post_init__(self) -> None:
        if self.damping <= 0 or self.block < 1:
            raise ValueError(f"damping and block must be positive: {self!r}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats: see `quantize_groups`."""
        return quantize_groups(block, self.prepare)

    def prepare(self, hessian: Tensor) -> Solver:
        """The solver for one Hessian (in, in)."""
        factor = factorize(hessian, self.damping, self.act_order)
        return Solver(
            lambda rows, grid: solve(rows, factor, grid, self.block), factor.dead, factor.retries
        )


def solve(weight: Tensor, factor: Factor, grid: WeightGrid, block: int = 128) -> QuantizedLinear:
    """Quantize weight (out, in) by GPTQ, given the factor of its Hessian.

    Without an order in `factor`, the scales of a group come from the weight as updated when its
    first column is reached. With one, they come from the original weight: a column then keeps the
    group of its original place, and the result needs no index of groups.
    """
    out, width = weight.shape
    channel, group = grid.channel(weight), grid.columns(width)
    places = range(width) if factor.order is None else factor.order.tolist()
    scales = weight.new_empty(group_count(width, group), out)
    if factor.order is not None:
        scales.copy_(grid.scales(weight, channel).T)
    # Transposed, so that a column of the weight is contiguous: w (in, out), in solving order.
    w = weight.T.clone(memory_format=torch.contiguous_format)
    w = w if factor.order is None else w[factor.order]
    codes = torch.empty(width, out, dtype=torch.int8, device=weight.device)
    upper, pivots = factor.upper, factor.upper.diagonal().tolist()
    for start, stop in spans(width, group, block):
        errors = w.new_empty(stop - start, out)
        for at in range(start, stop):
            column = places[at]
            if factor.order is None and at % group == 0:
                scales[at // group] = grid.scales(w[at : at + group].T, channel)[:, 0]
            scale = scales[column // group]
            code = grid.round(w[at], scale)
            codes[column] = code
            error = (w[at] - code * scale) / pivots[at]
            w[at + 1 : stop].addr_(upper[at, at + 1 : stop], error, alpha=-1)
            errors[at - start] = error
        w[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return QuantizedLinear(codes.T.contiguous(), scales.T.contiguous(), grid.bits, group, channel)


def spans(width: int, group: int, block: int) -> Iterator[tuple[int, int]]:
    """Cut `width` columns into spans of at most `block` that no group straddles unaligned.

    A span holds whole groups, or is part of one group and starts or ends with it: so all columns of
    a group are up to date when its first one is reached.
    """
    stride = max(group, block // group * group)
    for outer in range(0, width, stride):
        end = min(outer + stride, width)
        for start in range(outer, end, block):
            yield start, min(start + block, end)
