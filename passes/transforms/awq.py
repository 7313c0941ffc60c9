"""AWQ (arXiv 2306.00978): scale up the columns that large inputs meet, then cut large weights.

With the token weights of CGQ in statistic and loss it is the AWQ of DLLMQuant (arXiv 2508.14090);
uniform weights give plain AWQ. Rounding itself is left to a quantizer that runs afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passes.activations.grid import ActivationGrid, fake_quantize
from passes.base import Block, LinearGroup, Stats, Team, seen_enough, share
from passes.numerics import WeightGrid
from passes.transforms.clip import clip_rows, rounded
from passes.transforms.fold import fold_scale, tie
from passes.transforms.sample import sample_tokens
from passes.weights.hessian import accumulate_hessian, quadratic

LEAST = 1e-4  # what scales are clamped to before they are normalized


@dataclass(frozen=True)
class Awq:
    """Scale and clip the weights of every group that is to be quantized, group by group in order.

    Later groups see the inputs that the scaled and clipped earlier ones produce. Losses are those
    of grids that cover the largest weight: leave `clip` of the weight grid off.
    """

    ratios: int = 20  # exponents 0, 1/ratios … of the mean input; at 0 all scales are 1
    clip: bool = True
    unclipped: tuple[str, ...] = ("q", "k")  # linears whose outputs meet in a product
    max_tokens: int = 512  # that the loss is taken over where inputs are rounded too

    def __post_init__(self) -> None:
        if self.ratios < 1 or self.max_tokens < 1:
            raise ValueError(f"ratios and max_tokens must be positive: {self!r}")

    def __call__(self, block: Block, /) -> Stats:
        """Groups that saw hardly a token stay as they are.

        Stats, means over the others: the relative squared output error of weights rounded to
        nearest as they were (`rtn_error`) and scaled (`error`), the exponent (`ratio`), and the
        share of rows that were clipped (`clipped`).
        """
        found = [
            self.improve(block, group, group.grid)
            for group in block.groups
            if group.grid is not None and seen_enough(block, group)
        ]
        sums = torch.tensor(found, dtype=torch.float64).reshape(-1, 4).sum(0).tolist()
        names = ("rtn_error", "error", "ratio", "clipped")
        count = len(found)
        means = {name: total / max(count, 1) for name, total in zip(names, sums, strict=True)}
        return {"groups": count, **means}

    def improve(
        self, block: Block, group: LinearGroup, grid: WeightGrid
    ) -> tuple[float, float, float, float]:
        """Scale and clip the linears of one group; the four numbers of the stats."""
        grid = replace(grid, clip=False)  # the clip search is here, and weighs what inputs weigh
        mean, hessian = input_statistics(block, group)
        ratios = self.ratios if group.source else 1
        scales = [awq_scale(tie(block, group, mean), i / ratios) for i in range(ratios)]
        rows = torch.cat([block.weight(linear) for linear in group.linears])
        if group.activation is None:
            errors = weight_errors(rows, hessian, grid, scales, block.team)
        else:
            sample = sample_tokens(block, group, self.max_tokens)
            errors = output_errors(rows, sample, grid, group.activation, scales, block.team)
        best = int(errors.argmin())  # the first of equal ones
        if group.source:
            fold_scale(block, group, scales[best])
        hessian.div_(scales[best][:, None]).div_(scales[best])  # that of the scaled inputs
        clipped = self.cut(block, group, grid, hessian) if self.clip else 0.0
        return float(errors[0]), float(errors[best]), best / ratios, clipped

    def cut(self, block: Block, group: LinearGroup, grid: WeightGrid, hessian: Tensor) -> float:
        """Clip the weights of one group; the share of their rows that changed."""
        linears = [linear for linear in group.linears if linear not in self.unclipped]
        if not linears:
            return 0.0
        weights = [block.weight(linear) for linear in linears]
        rows = torch.cat(weights)
        mine = clip_rows(rows[share(len(rows), block.team)], hessian, grid)
        clipped = block.team.join(mine)
        for linear, part in zip(linears, clipped.split([len(w) for w in weights]), strict=True):
            block.set(linear, part)
        return float((clipped != rows).any(1).float().mean())


def awq_scale(mean: Tensor, ratio: float) -> Tensor:
    """Scales (in,) from the mean |x| (in,): `max(mean^ratio, 1e-4)`, over sqrt(largest * least)."""
    s = mean.pow(ratio).clamp_min(LEAST)
    return s / (s.max() * s.min()).sqrt()


def input_statistics(block: Block, group: LinearGroup) -> tuple[Tensor, Tensor]:
    """`sum_t w_t^2 |x_t| / sum_t w_t^2` (in,) and the Hessian (in, in) over the whole team."""
    like = block.weight(group.linears[0])
    total, mass = like.new_zeros(like.shape[1]), like.new_zeros(())
    hessian = like.new_zeros(len(total), len(total))
    for x, w in block.inputs(group):
        seen = w != 0
        square = w[seen].square()
        total += square @ x[seen].abs()
        mass += square.sum()
        accumulate_hessian(hessian, x, w)
    for sum_ in (total, mass, hessian):
        block.team.sum(sum_)
    return total / mass.clamp_min(torch.finfo(mass.dtype).tiny), hessian


def weight_errors(
    rows: Tensor, hessian: Tensor, grid: WeightGrid, scales: Sequence[Tensor], team: Team
) -> Tensor:
    """Relative squared output error (n,) fp64 of weights (out, in) rounded under n scales (in,).

    Inputs stay float, so it is `tr(D H D^T) / tr(W H W^T)`; a team shares the rows out.
    """
    mine = rows[share(len(rows), team)]
    errors = (quadratic(mine - rounded(mine * s, grid) / s, hessian) for s in scales)
    return relative([quadratic(mine, hessian), *errors], rows, team)


def output_errors(
    rows: Tensor,
    sample: tuple[Tensor, Tensor],
    grid: WeightGrid,
    activation: ActivationGrid,
    scales: Sequence[Tensor],
    team: Team,
) -> Tensor:
    """The same with inputs x / s rounded too, over a sample x (T, in), w (T,) of each process."""
    x, w = sample[0], sample[1][:, None]
    exact = x @ rows.T

    def error(s: Tensor) -> float:
        output = fake_quantize(x / s, activation) @ rounded(rows * s, grid).T
        return float((w * (exact - output)).double().square().sum())

    total = float((w * exact).double().square().sum())
    return relative([total, *map(error, scales)], rows, team)


def relative(losses: Sequence[float], like: Tensor, team: Team) -> Tensor:
    """`losses[1:] / losses[0]`, both summed over the team; 0 where there is no output at all."""
    summed = torch.tensor(losses, dtype=torch.float64, device=like.device)
    team.sum(summed)
    return summed[1:] / summed[0] if summed[0] > 0 else torch.zeros_like(summed[1:])
