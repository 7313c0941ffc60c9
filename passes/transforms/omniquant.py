"""OmniQuant (arXiv 2308.13137): learn where weights are clipped and how channels are scaled.

Both are found by gradient descent on the weighted output error, the backward pass taking rounding
for the identity. OmniQuant reconstructs whole blocks; this reconstructs groups of linears that
share an input, one after the other, as the other weight passes do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from passes.activations.grid import ActivationGrid, fake_quantize
from passes.base import Block, LinearGroup, Stats, Team, seen_enough
from passes.numerics import (
    SMALLEST_SCALE,
    QuantizedLinear,
    WeightGrid,
    group_count,
    grouped,
    largest_code,
)
from passes.transforms.fold import fold_scale, sharing
from passes.transforms.sample import sample_tokens
from passes.weights.rtn import round_to_nearest

START = 4.0  # where the logits of clipping start: sigmoid(4) = 0.982 (section 3.2)


@dataclass(frozen=True)
class OmniQuant:
    """Learn where the weights of every group that has a grid are clipped, and round them so.

    Groups are taken in order; each sees the inputs that the quantized ones before it produce.
    """

    steps: int = 100  # of Adam, each over the whole sample
    clip_rate: float = 0.05  # learning rate of the logits of clipping
    scale_rate: float = 0.03  # of the logarithms of the scales
    max_tokens: int = 512  # in the sample

    def __post_init__(self) -> None:
        if min(self.steps, self.max_tokens) < 1 or min(self.clip_rate, self.scale_rate) <= 0:
            raise ValueError(f"steps, rates and max_tokens must be positive: {self!r}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats, means over the groups, on the sample: `error`, the relative squared output error,
        and `rtn_error`, that of rounding to nearest.
        """
        found = [self.quantize(block, group, g) for group in block.groups if (g := group.grid)]
        return means([learned for learned in found if learned is not None])

    def quantize(self, block: Block, group: LinearGroup, grid: WeightGrid) -> "Learned | None":
        """Learn the clipping of one group and replace its linears.

        One that saw hardly a token is rounded to nearest.
        """
        if not seen_enough(block, group):
            for linear in group.linears:
                block.replace(linear, round_to_nearest(block.weight(linear), grid))
            return None
        learned = self.learn(block, group, grid, scale=False)
        weights = [block.weight(linear) for linear in group.linears]
        shares = learned.kept.split([len(weight) for weight in weights])
        for linear, weight, kept in zip(group.linears, weights, shares, strict=True):
            block.replace(linear, clipped(weight, kept, replace(grid, clip=False)))
        return learned

    def learn(self, block: Block, group: LinearGroup, grid: WeightGrid, scale: bool) -> "Learned":
        """Minimize the output error of one group over a sample of tokens."""
        # Inputs may come from inference mode, and the caller may have switched gradients off.
        with torch.inference_mode(False), torch.enable_grad():
            x, w = (tensor.clone() for tensor in sample_tokens(block, group, self.max_tokens))
            rows = torch.cat([block.weight(linear) for linear in group.linears]).clone()
            grid = replace(grid, clip=False)  # the search is here
            outputs = Outputs(rows, x, w[:, None], x @ rows.T, grid, group.activation)
            return self.descend(outputs, sharing(block, group), scale, block.team)

    def descend(
        self, outputs: "Outputs", shape: tuple[int, int, int], scale: bool, team: Team
    ) -> "Learned":
        """The best of all steps of Adam, and of where they start: no scales, nothing clipped.

        Scales are equal where input channels share a channel of their source: see `sharing`.
        """
        logs = outputs.rows.new_zeros(shape[0], 1, shape[2], requires_grad=True)
        count = group_count(outputs.rows.shape[1], outputs.grid.columns(outputs.rows.shape[1]))
        logits = logs.new_full((len(outputs.rows), count), START, requires_grad=True)
        rates = ((logits, self.clip_rate), (logs, self.scale_rate))[: 2 if scale else 1]
        adam = torch.optim.Adam([{"params": [values], "lr": rate} for values, rate in rates])
        one, all_kept = torch.ones_like(outputs.rows[0]), torch.ones_like(logits)
        total = summed((outputs.w * outputs.exact).square().sum(), team).clamp_min(1e-30)
        start = float(summed(outputs.error(one, all_kept), team) / total)
        best = Learned(one, all_kept, start, start)
        for _ in range(self.steps):
            s, kept = logs.exp().expand(shape).flatten(), logits.sigmoid()
            error = outputs.error(s, kept) / total
            gradients = torch.autograd.grad(error, [values for values, _ in rates])
            if (now := float(summed(error, team))) < best.error:
                best = Learned(s.detach(), kept.detach(), now, start)
            for (values, _), gradient in zip(rates, gradients, strict=True):
                values.grad = summed(gradient, team)
            adam.step()
        return best


@dataclass(frozen=True)
class OmniScale:
    """Learn the scales of every group that has a grid, together with its clipping, and fold them.

    All on the float block: scales go into the rows of `v` and `up` too, and grids of activations
    that are found later must see what then comes out of these.
    """

    search: OmniQuant = OmniQuant()

    def __call__(self, block: Block, /) -> Stats:
        """Stats as those of `OmniQuant`, for groups whose inputs are not yet rounded before."""
        found = []
        for group in block.groups:
            if group.grid is not None and group.source and seen_enough(block, group):
                learned = self.search.learn(block, group, group.grid, scale=True)
                fold_scale(block, group, learned.scale)
                found.append(learned)
        return means(found)


def means(found: Sequence["Learned"]) -> Stats:
    """How many groups there were, and their mean errors; 0 if there were none."""
    count = max(len(found), 1)
    return {
        "groups": len(found),
        "rtn_error": sum(learned.rtn_error for learned in found) / count,
        "error": sum(learned.error for learned in found) / count,
    }


@dataclass(frozen=True, eq=False)
class Learned:
    """What was found for one group of linears, their weights being stacked: (out, in)."""

    scale: Tensor  # (in,) what inputs are divided by
    kept: Tensor  # (out, groups) share of the largest weight that is kept
    error: float  # relative squared output error on the sample
    rtn_error: float  # the same, rounded to nearest


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of one group of linears over a sample of tokens, to be met by rounded ones."""

    rows: Tensor  # (out, in) the weights, stacked
    x: Tensor  # (T, in)
    w: Tensor  # (T, 1) token weights
    exact: Tensor  # (T, out)
    grid: WeightGrid
    activation: ActivationGrid | None

    def error(self, s: Tensor, kept: Tensor) -> Tensor:
        """`sum_t w_t^2 |x_t W^T - q(x_t / s) q(W s)^T|^2` for scales (in,) and shares kept."""
        x = self.x / s
        x = passed_through(fake_quantize(x.detach(), self.activation), x)
        found = x @ fake_clipped(self.rows * s, kept, self.grid).T
        return (self.w * (self.exact - found)).square().sum()


def clipped(weight: Tensor, kept: Tensor, grid: WeightGrid) -> QuantizedLinear:
    """weight (out, in) rounded to a grid that covers the share `kept` (out, groups) of the largest
    weight of each row and group (eq. 2, for a symmetric grid).
    """
    parts = grouped(weight, grid.columns(weight.shape[1]))
    limit = (kept * parts.abs().amax(-1))[..., None]
    return round_to_nearest(parts.clamp(-limit, limit).flatten(1)[:, : weight.shape[1]], grid)


def fake_clipped(weight: Tensor, kept: Tensor, grid: WeightGrid) -> Tensor:
    """The values of `clipped`, with a gradient for weight and kept."""
    values: Tensor = FakeClipped.apply(weight, kept, grid)  # type: ignore[no-untyped-call]
    return values


class FakeClipped(torch.autograd.Function):
    """What `fake_clipped` is forwards and backwards.

    With code and scale = limit / top, a value is code * scale, and rounding is taken for the
    identity: inside of the limit the value follows the weight w, and the limit by
    `code / top - w / limit`; outside it is the limit itself, up to its sign. The limit is the kept
    share of the largest weight, so what reaches it goes on to both.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: Tensor, grid: WeightGrid) -> Tensor:
        parts = grouped(weight, grid.columns(weight.shape[1]))
        largest, place = parts.abs().max(-1, keepdim=True)
        limit = kept[..., None] * largest
        cut = parts.clamp(-limit, limit)
        rounded = round_to_nearest(cut.flatten(1)[:, : weight.shape[1]], grid)
        codes = grouped(rounded.codes, parts.shape[-1]).float()
        outside = cut != parts
        inner = (cut / limit.clamp_min(SMALLEST_SCALE)).masked_fill_(outside, 0)
        slope = codes.div_(largest_code(grid.bits)).sub_(inner)
        signed = parts.gather(-1, place).sign() * kept[..., None]
        ctx.save_for_backward(outside, slope, largest, signed, place)
        return rounded.dequantize()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        outside, slope, largest, signed, place = ctx.saved_tensors
        gradient = grouped(gradients[0], outside.shape[-1])
        by_limit = (gradient * slope).sum(-1, keepdim=True)
        by_weight = gradient.masked_fill(outside, 0).scatter_add_(-1, place, by_limit * signed)
        return by_weight.flatten(1)[:, : gradients[0].shape[1]], (by_limit * largest)[..., 0], None


def passed_through(value: Tensor, gradient: Tensor) -> Tensor:
    """`value`, to the bit, with the gradient of `gradient`."""
    return value + (gradient - gradient.detach())


def summed(tensor: Tensor, team: Team) -> Tensor:
    """The sum over the team, cut off from the gradient."""
    total = tensor.detach().clone()
    team.sum(total)
    return total
