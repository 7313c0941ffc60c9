"""The mean key, found by calibration: what keys lose before they are rounded.

Taking one and the same vector off all keys changes no probability (SageAttention, arXiv 2410.02367,
section 4.2). Where that vector is known beforehand, the codes of a key depend on that key alone: a
cache can hold them, and no later key changes them.
"""

from dataclasses import dataclass, replace

import torch

from passes.activations.attention import FLOAT
from passes.base import Block, Stats


@dataclass(frozen=True)
class KeyMean:
    """Give every key head the mean of its keys over the calibration tokens that count.

    Keys stand behind norm, positions, and the rotation of queries and keys, if there is one.
    """

    def __call__(self, block: Block, /) -> Stats:
        """Stats: `tokens`, and `share`, the mean's part of the keys' squares. No tokens: zeros."""
        grid = block.attention()
        if grid is None or grid.k_bits == FLOAT:
            return {"tokens": 0}
        device = block.weight(block.groups[0].linears[0]).device
        shape = (block.heads.kv_heads, block.heads.width)
        total = torch.zeros(shape, dtype=torch.float64, device=device)
        squares, count = total.new_zeros(()), total.new_zeros(())
        for k, w in block.positioned_keys():
            k = k if grid.rotation is None else k @ grid.rotation
            shown = torch.where((w > 0)[:, None, :, None], k, 0.0).double()
            total += shown.sum((0, 2))
            squares += shown.square().sum()
            count += (w > 0).sum()
        for part in (total, squares, count):
            block.team.sum(part)
        mean = total / count.clamp_min(1)
        block.quantize_attention(replace(grid, k_mean=mean.float()))
        share = float(count * mean.square().sum() / squares) if squares else 0.0
        return {"tokens": float(count), "share": share}
