"""Round to nearest: the weight pass that needs no calibration, and the baseline of the others."""

from dataclasses import dataclass

from torch import Tensor

from passes.base import Block, Stats
from passes.numerics import QuantizedLinear, clip_scales, quantize_to, symmetric_scales


@dataclass(frozen=True)
class Rtn:
    """Quantize every linear of a block to the nearest point of its grid."""

    bits: int
    group: int  # input columns that share a scale
    clip: bool = False  # search the scale instead of covering the largest weight

    def __call__(self, block: Block, /) -> Stats:
        """Stats: `weight_error` and `worst_weight_error`, |W - Q|^2 / |W|^2 over the linears."""
        errors: list[float] = []
        for linear in (name for group in block.groups for name in group.linears):
            weight = block.weight(linear)
            quantized = round_to_nearest(weight, self.bits, self.group, self.clip)
            block.replace(linear, quantized)
            errors.append(weight_error(weight, quantized))
        return {
            "linears": len(errors),
            "weight_error": sum(errors) / max(len(errors), 1),
            "worst_weight_error": max(errors, default=0.0),
        }


def round_to_nearest(w: Tensor, bits: int, group: int, clip: bool = False) -> QuantizedLinear:
    """w (out, in) at the nearest points of the symmetric grid, by largest weight or clip search."""
    scales = clip_scales(w, bits, group) if clip else symmetric_scales(w, bits, group)
    return QuantizedLinear(quantize_to(w, scales, bits, group), scales, bits, group)


def weight_error(w: Tensor, quantized: QuantizedLinear) -> float:
    """|W - Q|^2 / |W|^2 in squared Frobenius norms; 0 for a weight that is all zeros."""
    total = float(w.double().square().sum())
    return float((w - quantized.dequantize()).double().square().sum()) / total if total else 0.0
