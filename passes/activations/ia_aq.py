"""IA-AQ of DLLMQuant (arXiv 2508.14090): scales for values, judged by what attention makes of them.

The product of probabilities and values can only run on integers if all tokens share the scales of
the values, so one token with large values spoils it for all. How far to clip is decided by the
error of the product, in which tokens that get no attention do not count (arXiv 2506.13759,
equations 123 and 124).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from passes.activations.attention import (
    FLOAT,
    AttentionGrid,
    quantize_probabilities,
    quantize_values,
)
from passes.activations.grid import LEAST_SCALE
from passes.base import Block, Stats

Alphas = Literal["minmax", "paper", "range", "wide"]


@dataclass(frozen=True)
class IaAq:
    """Give every channel of the values a static scale and zero point.

    They cover the smallest and the largest value times alpha, the alpha with the least error.
    `alphas` are 1 alone ("minmax", which searches nothing), 1 and 0.8 ("paper"), what may be meant
    by that ("range": 1.00, 0.98 ... 0.80), or all that and on to 0.05 ("wide", which a token of
    very large values needs). Each holds those before it.
    """

    alphas: Alphas = "wide"
    rule: Literal["attention", "mse"] = "attention"  # "mse": of the values, to tell them apart
    weighted: bool = False  # weigh queries with their token weights; the paper does not say so
    headroom: float = 1.0  # what the calibrated range is widened by, for values not met there

    def __post_init__(self) -> None:
        if self.headroom < 1:
            raise ValueError(f"headroom widens the range: at least 1, not {self.headroom}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats: `channels` (0: values are float, nothing to do), the mean `alpha`, the relative
        squared `error` over all channels, and `minmax_error`, what it is with all alphas 1.
        """
        grid = block.attention()
        if grid is None or grid.v_bits == FLOAT:
            return {"channels": 0}
        scale, zero = self.cover(block, grid.v_bits)
        alphas = torch.tensor(alpha_grid(self.alphas), device=scale.device)
        scales = scale * alphas[:, None, None]
        losses, total = self.losses(block, grid, scales, zero)
        best = losses.argmin(0)  # of equal ones the largest alpha
        # The search knows the calibrated values alone: headroom is for others, so it comes last.
        chosen = scales.gather(0, best[None])[0] * self.headroom
        block.quantize_attention(replace(grid, v_scale=chosen, v_zero=zero))
        least = losses.amin(0).sum()
        return {
            "channels": best.numel(),
            "alpha": float(alphas[best].mean()),
            "error": float(least / total) if total else 0.0,
            "minmax_error": float(losses[0].sum() / total) if total else 0.0,
        }

    def cover(self, block: Block, bits: int) -> tuple[Tensor, Tensor]:
        """Scales and zero points (kv heads, K) fp32 that cover 0 and the values of all tokens, and
        the headroom.
        """
        heads = block.heads
        device = block.weight(block.groups[0].linears[0]).device
        low = torch.zeros(heads.kv_heads, heads.width, device=device)
        high = low.clone()
        for _, v, w in block.operands():
            shown = torch.where((w > 0)[:, None, :, None], v, 0.0)
            low = torch.minimum(low, shown.amin((0, 2)))
            high = torch.maximum(high, shown.amax((0, 2)))
        low = torch.stack(block.team.collect(low.cpu())).amin(0).to(device)
        high = torch.stack(block.team.collect(high.cpu())).amax(0).to(device)
        scale = ((high - low) / (2**bits - 1)).clamp_min(LEAST_SCALE)
        return scale, (low.abs() / scale).round()

    def losses(
        self, block: Block, grid: AttentionGrid, scales: Tensor, zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared errors for scales (A, kv heads, K): the same shape in fp64, over all processes.

        It is `sum |P (V_s - V)|^2` over queries and the query heads of a key and value head, P as
        the grid rounds it; that of V alone by the rule "mse". With it comes `sum |P V|^2`.
        """
        losses = torch.zeros_like(scales, dtype=torch.float64)
        total = losses.new_zeros(())
        for p, v, w in block.operands():
            v = torch.where((w > 0)[:, None, :, None], v, 0.0)
            weights = w if self.weighted else (w > 0).float()
            rows = self.rows(quantize_probabilities(p, grid), weights, v.shape[1])
            total += (rows @ v).square().sum(dtype=torch.float64)
            for index, scale in enumerate(scales):
                error = quantize_values(v, replace(grid, v_scale=scale, v_zero=zero)) - v
                losses[index] += (rows @ error).square().sum((0, 2), dtype=torch.float64)
        block.team.sum(losses)
        block.team.sum(total)
        return losses, total

    def rows(self, p: Tensor, weights: Tensor, kv_heads: int) -> Tensor:
        """What the errors of the values are multiplied with: (B, kv heads, rows, S).

        The rows of p (B, heads, S, S) of all query heads that share a key and value head, times the
        weights (B, S) of their queries; by the rule "mse" the tokens themselves.
        """
        if self.rule == "mse":
            return weights.diag_embed()[:, None].expand(-1, kv_heads, -1, -1)
        by_head: Tensor = (p * weights[:, None, :, None]).unflatten(1, (kv_heads, -1))
        return by_head.flatten(2, 3)


def alpha_grid(alphas: Alphas) -> list[float]:
    """The candidates of a name, falling from 1."""
    if alphas == "minmax":
        return [1.0]
    if alphas == "paper":
        return [1.0, 0.8]
    near = [step / 100 for step in range(100, 78, -2)]
    return near if alphas == "range" else near + [step / 100 for step in range(75, 0, -5)]
