"""Symmetric integer grids for weights: one scale a row and group of input columns.

A scale is always a float16 value held in fp32, because the graphs that are emitted may store it in
either type: what is measured here is then exactly what runs there. On a grid of two levels it is a
float16 value times a small integer, which fp32 holds exactly.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

SMALLEST_SCALE = 2.0**-24  # the least positive float16 (a subnormal)
CLIP_STEPS = 80  # candidates 1.00, 0.99 ... 0.21 of the largest weight, as the GPTQ code searches
CLIP_NORM = 2.4  # exponent of the error in that search
CHANNEL_TOP = 119  # int8 value of a row's largest weight on a grid of two levels: 7 * 17


@dataclass(frozen=True)
class WeightGrid:
    """The values that a weight may take: `bits` wide codes with a scale a row and group.

    Two levels (QServe, arXiv 2405.04532, section 4.2): a group's scale is the row's float16 scale
    times an integer m, and code * m fits int8. A runtime unpacks such weights to int8 once and
    multiplies integers over all groups.
    """

    bits: int
    group: int | None = None  # input columns that share a scale; None: the whole row
    levels: Literal[1, 2] = 1
    clip: bool = False  # search the scales instead of covering the largest weight

    def __post_init__(self) -> None:
        if self.levels == 2 and self.bits > 4:
            raise ValueError(f"codes of {self.bits} bits leave no room for a second level in int8")

    def columns(self, width: int) -> int:
        """How many of `width` input columns share a scale."""
        return width if self.group is None else self.group

    @property
    def least(self) -> int:
        """The smallest code: of two levels minus the largest, so that code * m fits int8."""
        top = largest_code(self.bits)
        return -top if self.levels == 2 else -top - 1

    def channel(self, w: Tensor) -> Tensor | None:
        """The row scales (out, 1) of w (out, in) on a grid of two levels."""
        if self.levels == 1:
            return None
        return float16_scales(w.abs().amax(1, keepdim=True) / CHANNEL_TOP)

    def scales(self, w: Tensor, channel: Tensor | None) -> Tensor:
        """Scales (out, ceil(in / group)) for w (out, in); `channel` is that of the whole rows."""
        group = self.columns(w.shape[1])
        if channel is None:
            find = clip_scales if self.clip else symmetric_scales
            return find(w, self.bits, group)
        return multiple_scales(w, channel, self.bits, group, self.clip)

    def round(self, w: Tensor, scale: Tensor) -> Tensor:
        """Codes in fp32: `clip(round(w / scale), least, 2^(bits-1) - 1)`, ties to even."""
        return (w / scale).round_().clamp_(self.least, largest_code(self.bits))


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A weight (out, in) on a grid: `weight[o, i] = codes[o, i] * scales[o, i // group]`."""

    codes: Tensor  # (out, in) int8, in [-2^(bits-1), 2^(bits-1) - 1]
    scales: Tensor  # (out, ceil(in / group)) fp32, > 0; float16 values on a grid of one level
    bits: int
    group: int  # input columns that share a scale; the last group may be narrower
    channel: Tensor | None = None  # (out, 1) fp32, float16 values: the row scales of two levels

    def __post_init__(self) -> None:
        out, width = self.codes.shape
        if self.scales.shape != (out, group_count(width, self.group)):
            raise ValueError(
                f"scales {tuple(self.scales.shape)} do not fit codes {(out, width)} "
                f"in groups of {self.group}"
            )
        base = self.scales if self.channel is None else self.channel
        if not (torch.equal(base.half().float(), base) and (self.scales > 0).all()):
            raise ValueError("scales must be positive float16 values")
        if self.channel is not None and not torch.equal(self.steps() * self.channel, self.scales):
            raise ValueError("scales of two levels must be whole multiples of the row's scale")

    def steps(self) -> Tensor:
        """The integers m (out, groups) in fp32 with scales = m * channel, on two levels."""
        assert self.channel is not None
        return (self.scales / self.channel).round()

    def int8(self) -> Tensor:
        """The weight in units of the row's scale, int8 (out, in): exact where a row has one."""
        if self.channel is None:
            return self.codes
        return (self.codes * expand(self.steps(), self.group, self.codes.shape[1])).to(torch.int8)

    def to(self, device: str) -> "QuantizedLinear":
        """The same on another device."""
        channel = None if self.channel is None else self.channel.to(device)
        return QuantizedLinear(
            self.codes.to(device), self.scales.to(device), self.bits, self.group, channel
        )

    def dequantize(self) -> Tensor:
        """The weight (out, in) in fp32, the very values that the emitted graph computes with."""
        return self.codes.float() * expand(self.scales, self.group, self.codes.shape[1])

    def split(self, rows: Sequence[int]) -> list["QuantizedLinear"]:
        """Cut into linears of `rows[0]`, `rows[1]`, ... output rows: the inverse of stacking."""
        codes, scales = torch.split(self.codes, list(rows)), torch.split(self.scales, list(rows))
        none: Sequence[Tensor | None] = [None] * len(rows)
        channels = none if self.channel is None else torch.split(self.channel, list(rows))
        return [
            QuantizedLinear(code, scale, self.bits, self.group, channel)
            for code, scale, channel in zip(codes, scales, channels, strict=True)
        ]


def symmetric_scales(w: Tensor, bits: int, group: int) -> Tensor:
    """Scales (out, ceil(in / group)) of w (out, in) that miss no weight by more than half a step.

    Of the two `covering_scales` the one of less squared error by row and group, in float16 values.
    A group too small for that, all zeros included, gets the least positive one; a group too large,
    or not finite, raises ValueError.
    """
    top = largest_code(bits)
    steps = (float16_scales(scale) for scale in covering_scales(w, bits, group))
    return least_error(w, steps, group, (-top - 1, top), 2)


def covering_scales(w: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """The least scales (out, groups) that clip no weight, and none by more than half a step.

    Codes reach from -top - 1 to top = 2^(bits-1) - 1: whether the largest weight is negative
    counts. The finer grid is half a step off at that weight and closer at all others, which pays
    from about 20 weights of 4 bits on. What is on a grid already is on the first one.
    """
    top, parts = largest_code(bits), grouped(w, group)
    most, least = parts.amax(-1).clamp(min=0), -parts.amin(-1).clamp(max=0)
    exact, half = (
        torch.maximum(most / (top + slack), least / (top + 1 + slack)) for slack in (0, 0.5)
    )
    return exact, half


def clip_scales(w: Tensor, bits: int, group: int) -> Tensor:
    """Scales (out, ceil(in / group)) that clip the largest weights where this pays.

    Those of least `sum |q(w) - w|^2.4` by row and group among p times the first of the
    `covering_scales`, p = 1.00, 0.99 ... 0.21, and the second. It is the `w_clip` search of the
    GPTQ and QuaRot code.
    """
    top = largest_code(bits)
    exact, half = covering_scales(w, bits, group)
    clipped = (exact * (1 - step / 100) for step in range(CLIP_STEPS))
    steps = (float16_scales(scale) for scale in (*clipped, half))
    return least_error(w, steps, group, (-top - 1, top), CLIP_NORM)


def multiple_scales(w: Tensor, channel: Tensor, bits: int, group: int, clip: bool) -> Tensor:
    """Scales (out, ceil(in / group)) of w (out, in) that are whole multiples of `channel` (out, 1).

    Of the two least multiples that miss no weight, or none by more than half a step, the one of
    less squared error; with `clip` that of the least `sum |q(w) - w|^2.4` among all. The multiple
    is at most 127 / (2^(bits-1) - 1), so that code * multiple fits int8.
    """
    top = largest_code(bits)
    most = 127 // top
    largest = grouped(w, group).abs().amax(-1) / channel
    # A quotient that fp32 rounds up past a whole number must not cost a whole step.
    covering = ((largest / reach * (1 - 2.0**-20)).ceil_() for reach in (top, top + 0.5))
    every = (torch.full_like(largest, multiple) for multiple in range(1, most + 1))
    steps = (channel * multiple.clamp(1, most) for multiple in (every if clip else covering))
    return least_error(w, steps, group, (-top, top), CLIP_NORM if clip else 2)


def least_error(
    w: Tensor, candidates: Iterable[Tensor], group: int, codes: tuple[int, int], norm: float
) -> Tensor:
    """Of candidate scales (out, groups) for w (out, in) those of least `sum |q(w) - w|^norm`.

    Each row and group has its own; of equal ones it is the first. `codes` are the smallest and the
    largest code.
    """
    best, least = w.new_empty(0), w.new_tensor(torch.inf)
    for scales in candidates:
        step = scales if scales.shape[1] == 1 else expand(scales, group, w.shape[1])
        error = (w / step).round_().clamp_(*codes).mul_(step).sub_(w).abs_().pow_(norm)
        loss = grouped(error, group).sum(-1)
        best = torch.where(loss < least, scales, best) if best.numel() else scales
        least = torch.minimum(loss, least)
    return best


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
