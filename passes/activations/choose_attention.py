"""The arithmetic of attention, block by block: integers where they do, floats where they have to.

Products of probabilities and values on integers need values on scales that all tokens share. One
token with very large values makes these coarse for all others, in that block alone; halves do not
mind (SageAttention, arXiv 2410.02367, keeps that product in halves everywhere).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from passes.activations.attention import FLOAT, AttentionGrid
from passes.base import Block, Stats


@dataclass(frozen=True)
class ChooseAttention:
    """Give the block the cheapest arithmetic whose error is at most `limit`.

    The error is that of attention's outputs, squared and relative to their squares token by token,
    and the mean over the calibration tokens that count: few large ones do not hide what the others
    lose. Cheapest first: all integers, as the grids are; queries and keys on integers with float
    probabilities and values; all floats, whose error is 0.
    """

    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"the limit of an error is above 0, not {self.limit}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats: the errors of `integers` and of `float_values`, and `chosen`: 0, 1, or 2, floats.

        Nothing (`chosen` 2) where attention is float already.
        """
        grid = block.attention()
        if grid is None or grid.is_float:
            return {"chosen": 2}
        candidates = cheaper_first(grid)
        errors = self.errors(block, candidates)
        chosen = next((n for n, error in enumerate(errors) if error <= self.limit), len(errors))
        floats = AttentionGrid(k_mean=grid.k_mean)  # by which caches know what to hold
        block.quantize_attention([*candidates, floats][chosen])
        return {"integers": errors[0], "float_values": errors[1], "chosen": chosen}

    def errors(self, block: Block, grids: Sequence[AttentionGrid]) -> list[float]:
        """The error on each grid, over all processes."""
        device = block.weight(block.groups[0].linears[0]).device
        off = torch.zeros(len(grids), dtype=torch.float64, device=device)
        count = off.new_zeros(())
        for place, grid in enumerate(grids):
            for (y, w), (exact, _) in zip(block.attended(grid), block.attended(None), strict=True):
                wrong, whole = (x.double().square().sum((2, 3)) for x in (y - exact, exact))
                counts = (w > 0) & (whole > 0)
                off[place] += torch.where(counts, wrong / whole, 0.0).sum()
                count += counts.sum() if place == 0 else 0
        block.team.sum(off)
        block.team.sum(count)
        return [float(each / count.clamp_min(1)) for each in off]


def cheaper_first(grid: AttentionGrid) -> tuple[AttentionGrid, AttentionGrid]:
    """The grids as they are, and those without grids for probabilities and values."""
    return grid, replace(grid, v_bits=FLOAT, p_bits=FLOAT, v_scale=None, v_zero=None)
