"""Quantize a block one group of linears at a time, for the least error of the group's outputs.

What GPTQ, QuantEase and their like share: the Hessian over all calibration tokens, rows shared out
over a team, and the errors that end up in the manifest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passes.base import LEAST_TOKENS, Block, LinearGroup, Stats, Team, share
from passes.numerics import QuantizedLinear, WeightGrid
from passes.weights.hessian import accumulate_hessian, quadratic
from passes.weights.rtn import round_to_nearest

Solve = Callable[[Tensor, WeightGrid], QuantizedLinear]  # of some rows (rows, in), each on its own


@dataclass(frozen=True)
class Solver:
    """A method of solving, made ready for the Hessian of one group."""

    solve: Solve
    dead: int  # columns that no token ever touched
    retries: int  # times the damping had to be raised


@dataclass(frozen=True)
class GroupResult:
    """What solving one group of linears gave."""

    tokens: int
    dead: int
    retries: int
    errors: list[float] = field(default_factory=list)  # of each linear's output, relative
    rtn_errors: list[float] = field(default_factory=list)  # the same, rounded to nearest


def quantize_groups(block: Block, prepare: Callable[[Tensor], Solver]) -> Stats:
    """Solve and replace all linears that have a grid; `prepare` takes a group's Hessian (in, in).

    Groups are taken in order; each sees the inputs that the quantized ones before it produce. Stats
    over the linears: `error` (mean) and `worst_error` of the output, `rtn_error` (what rounding to
    nearest gives on the same inputs), `tokens` (fewest that a group saw), `unseen` (groups that saw
    too few and are rounded to nearest).
    """
    results = [
        quantize_group(block, group, group.grid, prepare) for group in block.groups if group.grid
    ]
    errors = [error for result in results for error in result.errors]
    rtn_errors = [error for result in results for error in result.rtn_errors]
    return {
        "linears": len(errors),
        "error": sum(errors) / max(len(errors), 1),
        "worst_error": max(errors, default=0.0),
        "rtn_error": sum(rtn_errors) / max(len(rtn_errors), 1),
        "tokens": min((result.tokens for result in results), default=0),
        "unseen": sum(result.tokens < LEAST_TOKENS for result in results),
        "dead_columns": sum(result.dead for result in results),
        "damping_retries": sum(result.retries for result in results),
    }


def quantize_group(
    block: Block, group: LinearGroup, grid: WeightGrid, prepare: Callable[[Tensor], Solver]
) -> GroupResult:
    """Solve the linears of one group and replace them in the block."""
    weights = [block.weight(linear) for linear in group.linears]
    hessian, tokens = collect(block, group, weights[0])
    solver = prepare(hessian) if tokens >= LEAST_TOKENS else Solver(round_to_nearest, 0, 0)
    result = GroupResult(tokens, solver.dead, solver.retries)
    # Rows are independent given H: linears that share an input are solved as one, and a team
    # shares the rows out.
    rows = weights[0] if len(weights) == 1 else torch.cat(weights)
    mine = solver.solve(rows[share(len(rows), block.team)], grid)
    solved = join(block.team, mine).split([len(weight) for weight in weights])
    for linear, weight, quantized in zip(group.linears, weights, solved, strict=True):
        block.replace(linear, quantized)
        nearest = round_to_nearest(weight, grid)
        total = quadratic(weight, hessian)
        for found, errors in ((quantized, result.errors), (nearest, result.rtn_errors)):
            left = quadratic(weight - found.dequantize(), hessian)
            errors.append(left / total if total > 0 else 0.0)
    return result


def collect(block: Block, group: LinearGroup, like: Tensor) -> tuple[Tensor, int]:
    """The Hessian (in, in) of a group over all calibration inputs, and the tokens it counts.

    `like` is a weight (out, in) of the group.
    """
    width = like.shape[1]
    hessian = torch.zeros(width, width, device=like.device)
    tokens = sum(accumulate_hessian(hessian, x, w) for x, w in block.inputs(group))
    block.team.sum(hessian)
    return hessian, sum(block.team.collect(tokens))


def join(team: Team, mine: QuantizedLinear) -> QuantizedLinear:
    """The rows that each process of the team solved, as one linear."""
    channel = None if mine.channel is None else team.join(mine.channel)
    codes, scales = team.join(mine.codes), team.join(mine.scales)
    return QuantizedLinear(codes, scales, mine.bits, mine.group, channel)
