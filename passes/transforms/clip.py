"""The clip search of AWQ (arXiv 2306.00978, code): cut large weights where the output gains by it.

A group of weights whose largest is smaller has a finer grid. The weights are cut here; a quantizer
that covers the largest weight of each group, as all do unless told otherwise, then has that grid.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from passes.numerics import WeightGrid, expand, group_count, grouped
from passes.weights.rtn import round_to_nearest

STEP, STEPS = 1 / 20, 10  # the largest weights are cut to 1.00, 0.95 … 0.55 of themselves


def clip_rows(rows: Tensor, hessian: Tensor, grid: WeightGrid) -> Tensor:
    """Weights (out, in) with each row and group cut where its part of the output error is least.

    `hessian` (in, in) is that of the inputs, up to a factor. Groups are searched apart from each
    other, as in the code of AWQ; a row stays as it is unless its whole output error falls.
    """
    width = grid.columns(rows.shape[1])
    blocks = diagonal_blocks(hessian, width)
    widest = grouped(rows, width).abs().amax(-1)
    best, least = widest, torch.full_like(widest, torch.inf)
    for step in range(STEPS):
        limit = widest * (1 - step * STEP)
        loss = group_errors(rows - rounded(cut(rows, limit, width), grid), blocks)
        best = torch.where(loss < least, limit, best)
        least = torch.minimum(loss, least)
    clipped = cut(rows, best, width)
    before = row_errors(rows - rounded(rows, grid), hessian)
    after = row_errors(rows - rounded(clipped, grid), hessian)
    return torch.where((after < before)[:, None], clipped, rows)


def cut(rows: Tensor, limit: Tensor, width: int) -> Tensor:
    """Weights (out, in) at most `limit` (out, groups) in size."""
    bound = expand(limit, width, rows.shape[1])
    return rows.clamp(-bound, bound)


def rounded(rows: Tensor, grid: WeightGrid) -> Tensor:
    """Weights (out, in) at the nearest points of the grid."""
    return round_to_nearest(rows, grid).dequantize()


def diagonal_blocks(hessian: Tensor, width: int) -> Tensor:
    """The blocks (groups, width, width) of a Hessian (in, in) that couple columns of one group."""
    count = group_count(len(hessian), width)
    rest = count * width - len(hessian)
    cells = pad(hessian, (0, rest, 0, rest)).view(count, width, count, width)
    return cells.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def group_errors(difference: Tensor, blocks: Tensor) -> Tensor:
    """Squared error (out, groups) of each group's part of the output, for rows (out, in)."""
    parts = grouped(difference, blocks.shape[1]).transpose(0, 1)  # (groups, out, width)
    return ((parts @ blocks) * parts).sum(-1).T


def row_errors(difference: Tensor, hessian: Tensor) -> Tensor:
    """Squared error (out,) of the outputs, for rows (out, in)."""
    return ((difference @ hessian) * difference).sum(1)
