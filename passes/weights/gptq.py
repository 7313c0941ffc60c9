"""GPTQ (arXiv 2210.17323): round column by column, and let later columns make up for the error.

With token weights of CGQ in the Hessian it is the weight part of DLLMQuant (arXiv 2508.14090).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passes.base import Block, LinearGroup, Stats, share
from passes.numerics import (
    QuantizedLinear,
    clip_scales,
    group_count,
    round_to_grid,
    symmetric_scales,
)
from passes.weights.hessian import Factor, accumulate_hessian, factorize, output_error
from passes.weights.rtn import round_to_nearest


@dataclass(frozen=True)
class Gptq:
    """Quantize every linear of a block so that its output over the calibration tokens stays close.

    Groups of linears are taken in order; each sees the inputs that the quantized ones before it
    produce.
    """

    bits: int
    group: int  # input columns that share a scale
    act_order: bool = False  # take columns of large input first; scales of the original weight
    damping: float = 0.01  # added to the diagonal, in units of its mean
    block: int = 128  # columns after which the rest of the weight is updated
    clip: bool = False  # search the scales instead of covering the largest weight

    def __post_init__(self) -> None:
        if self.damping <= 0 or self.block < 1:
            raise ValueError(f"damping and block must be positive: {self!r}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats over the linears: `error` (mean) and `worst_error` of the output, `rtn_error` (what
        rounding to nearest gives on the same inputs), `tokens` (fewest that a group saw).
        """
        groups = [self.quantize(block, group) for group in block.groups]
        errors = [error for group in groups for error in group.errors]
        rtn_errors = [error for group in groups for error in group.rtn_errors]
        return {
            "linears": len(errors),
            "error": sum(errors) / max(len(errors), 1),
            "worst_error": max(errors, default=0.0),
            "rtn_error": sum(rtn_errors) / max(len(rtn_errors), 1),
            "tokens": min((group.tokens for group in groups), default=0),
            "dead_columns": sum(group.dead for group in groups),
            "damping_retries": sum(group.retries for group in groups),
        }

    def quantize(self, block: Block, group: LinearGroup) -> "GroupResult":
        """Solve the linears of one group and replace them in the block."""
        weights = [block.weight(linear) for linear in group.linears]
        hessian, tokens = collect(block, group, weights[0])
        factor = factorize(hessian, self.damping, self.act_order)
        result = GroupResult(tokens, factor.dead, factor.retries)
        # Rows are independent given H: linears that share an input are solved as one, and a team
        # shares the rows out.
        rows = weights[0] if len(weights) == 1 else torch.cat(weights)
        mine = solve(
            rows[share(len(rows), block.team)], factor, self.bits, self.group, self.block, self.clip
        )
        whole = QuantizedLinear(
            block.team.join(mine.codes), block.team.join(mine.scales), self.bits, self.group
        )
        solved = whole.split([len(weight) for weight in weights])
        for linear, weight, quantized in zip(group.linears, weights, solved, strict=True):
            block.replace(linear, quantized)
            nearest = round_to_nearest(weight, self.bits, self.group, self.clip)
            result.errors.append(output_error(weight, quantized.dequantize(), hessian))
            result.rtn_errors.append(output_error(weight, nearest.dequantize(), hessian))
        return result


@dataclass(frozen=True)
class GroupResult:
    """What solving one group of linears gave."""

    tokens: int
    dead: int
    retries: int
    errors: list[float] = field(default_factory=list)  # of each linear's output, relative
    rtn_errors: list[float] = field(default_factory=list)  # the same, rounded to nearest


def collect(block: Block, group: LinearGroup, like: Tensor) -> tuple[Tensor, int]:
    """The Hessian (in, in) of a group over all calibration inputs, and the tokens it counts."""
    width = like.shape[1]
    hessian = torch.zeros(width, width, device=like.device)
    tokens = sum(accumulate_hessian(hessian, x, w) for x, w in block.inputs(group))
    block.team.sum(hessian)
    return hessian, sum(block.team.collect(tokens))


def solve(
    weight: Tensor, factor: Factor, bits: int, group: int, block: int = 128, clip: bool = False
) -> QuantizedLinear:
    """Quantize weight (out, in) by GPTQ, given the factor of its Hessian.

    Without an order in `factor`, the scales of a group come from the weight as updated when its
    first column is reached. With one, they come from the original weight: a column then keeps the
    group of its original place, and the result needs no index of groups.
    """
    out, width = weight.shape
    find_scales = clip_scales if clip else symmetric_scales
    places = range(width) if factor.order is None else factor.order.tolist()
    scales = weight.new_empty(group_count(width, group), out)
    if factor.order is not None:
        scales.copy_(find_scales(weight, bits, group).T)
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
                scales[at // group] = find_scales(w[at : at + group].T, bits, group)[:, 0]
            scale = scales[column // group]
            code = round_to_grid(w[at], scale, bits)
            codes[column] = code
            error = (w[at] - code * scale) / pivots[at]
            w[at + 1 : stop].addr_(upper[at, at + 1 : stop], error, alpha=-1)
            errors[at - start] = error
        w[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return QuantizedLinear(codes.T.contiguous(), scales.T.contiguous(), bits, group)


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
