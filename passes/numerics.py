"""Symmetric integer grids for weights: one scale a row and group of input columns.

A scale is always a float16 value held in fp32, because the graphs that are emitted may store it in
either type: what is measured here is then exactly what runs there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

SMALLEST_SCALE = 2.0**-24  # the least positive float16 (a subnormal)
CLIP_STEPS = 80  # candidates 1.00, 0.99 ... 0.21 of the largest weight, as the GPTQ code searches
CLIP_NORM = 2.4  # exponent of the error in that search


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A weight (out, in) on a grid: `weight[o, i] = codes[o, i] * scales[o, i // group]`."""

    codes: Tensor  # (out, in) int8, in [-2^(bits-1), 2^(bits-1) - 1]
    scales: Tensor  # (out, ceil(in / group)) fp32, float16 values > 0
    bits: int
    group: int  # input columns that share a scale; the last group may be narrower

    def __post_init__(self) -> None:
        out, width = self.codes.shape
        if self.scales.shape != (out, group_count(width, self.group)):
            raise ValueError(
                f"scales {tuple(self.scales.shape)} do not fit codes {(out, width)} "
                f"in groups of {self.group}"
            )
        if not (torch.equal(self.scales.half().float(), self.scales) and (self.scales > 0).all()):
            raise ValueError("scales must be positive float16 values")

    def dequantize(self) -> Tensor:
        """The weight (out, in) in fp32, the very values that the emitted graph computes with."""
        return self.codes.float() * expand(self.scales, self.group, self.codes.shape[1])

    def split(self, rows: Sequence[int]) -> list["QuantizedLinear"]:
        """Cut into linears of `rows[0]`, `rows[1]`, ... output rows: the inverse of stacking."""
        parts = zip(
            torch.split(self.codes, list(rows)), torch.split(self.scales, list(rows)), strict=True
        )
        return [QuantizedLinear(codes, scales, self.bits, self.group) for codes, scales in parts]


def symmetric_scales(w: Tensor, bits: int, group: int) -> Tensor:
    """Scales (out, ceil(in / group)) of w (out, in) that cover its largest weight.

    They are `max|w| / (2^(bits-1) - 1)`, rounded to float16. A group too small for that, all zeros
    included, gets the least positive float16; one too large, or not finite, raises ValueError.
    """
    return float16_scales(grouped(w, group).abs().amax(-1) / largest_code(bits))


def clip_scales(w: Tensor, bits: int, group: int) -> Tensor:
    """Scales (out, ceil(in / group)) that clip the largest weights where this pays.

    For each row and group the p in 1.00, 0.99 ... 0.21 with the least `sum |q(w) - w|^2.4` over
    scales p * max|w| / (2^(bits-1) - 1); of equal ones the largest p. It is the `w_clip` search of
    the GPTQ and QuaRot code.
    """
    widest = grouped(w, group).abs().amax(-1) / largest_code(bits)
    best = float16_scales(widest)
    least = torch.full_like(best, torch.inf)
    for step in range(CLIP_STEPS):
        scales = float16_scales(widest * (1 - step / 100))
        rounded = quantize_to(w, scales, bits, group) * expand(scales, group, w.shape[1])
        loss = grouped((rounded - w).abs().pow(CLIP_NORM), group).sum(-1)
        best = torch.where(loss < least, scales, best)
        least = torch.minimum(loss, least)
    return best


def quantize_to(w: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """Codes int8 (out, in) of w (out, in) on the grid of scales (out, ceil(in / group))."""
    return round_to_grid(w, expand(scales, group, w.shape[1]), bits).to(torch.int8)


def round_to_grid(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Codes in fp32: `clip(round(w / scale), -2^(bits-1), 2^(bits-1) - 1)`, ties to even."""
    top = largest_code(bits)
    return (w / scale).round_().clamp_(-top - 1, top)


def largest_code(bits: int) -> int:
    """2^(bits-1) - 1; ValueError where the codes would not fit int8."""
    if not 2 <= bits <= 8:
        raise ValueError(f"weights take 2 to 8 bits, not {bits}")
    return int(2 ** (bits - 1)) - 1


def group_count(width: int, group: int) -> int:
    """How many groups of `group` columns cover `width` columns."""
    if group < 1:
        raise ValueError(f"a group has at least one column, not {group}")
    return -(-width // group)


def grouped(w: Tensor, group: int) -> Tensor:
    """Shape w (out, in) as (out, ceil(in / group), group), the last group filled up with zeros."""
    out, width = w.shape
    count = group_count(width, group)
    return pad(w, (0, count * group - width)).reshape(out, count, group)


def expand(scales: Tensor, group: int, width: int) -> Tensor:
    """Scales (out, groups), repeated to one a column: (out, width)."""
    return scales.repeat_interleave(group, dim=1)[:, :width]


def float16_scales(exact: Tensor) -> Tensor:
    """The nearest positive float16 values, in fp32; ValueError where there is no finite one."""
    scales = exact.half().float().clamp(min=SMALLEST_SCALE)
    if not torch.isfinite(scales).all():
        raise ValueError(
            f"a weight scale of {exact.max().item():g} is not a finite float16 (at most 65504)"
        )
    return scales
