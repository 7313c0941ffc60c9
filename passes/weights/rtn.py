"""Round to nearest: the weight pass that needs no calibration, and the baseline of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from passes.base import Block, Stats
from passes.numerics import QuantizedLinear, WeightGrid, expand


@dataclass(frozen=True)
class Rtn:
    """Quantize every linear of a block to the nearest point of its grid."""

    def __call__(self, block: Block, /) -> Stats:
        """Stats: `weight_error` and `worst_weight_error`, |W - Q|^2 / |W|^2 over the linears."""
        errors: list[float] = []
        for group in block.groups:
            if group.grid is None:
                continue
            for linear in group.linears:
                weight = block.weight(linear)
                quantized = round_to_nearest(weight, group.grid)
                block.replace(linear, quantized)
                errors.append(weight_error(weight, quantized))
        return {
            "linears": len(errors),
            "weight_error": sum(errors) / max(len(errors), 1),
            "worst_weight_error": max(errors, default=0.0),
        }


def round_to_nearest(w: Tensor, grid: WeightGrid) -> QuantizedLinear:
    """w (out, in) at the nearest points of `grid`."""
    channel, group = grid.channel(w), grid.columns(w.shape[1])
    scales = grid.scales(w, channel)
    codes = grid.round(w, expand(scales, group, w.shape[1])).to(torch.int8)
    return QuantizedLinear(codes, scales, grid.bits, group, channel)


def weight_error(w: Tensor, quantized: QuantizedLinear) -> float:
    """|W - Q|^2 / |W|^2 in squared Frobenius norms; 0 for a weight that is all zeros."""
    total = float(w.double().square().sum())
    return float((w - quantized.dequantize()).double().square().sum()) / total if total else 0.0
