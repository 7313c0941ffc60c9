"""Quantized linears in Triton: a second kernel, written from the operators' contract alone.

An oracle under TRITON_INTERPRET=1, which needs no GPU, and a contestant where there is one. All
formats; with activations of 16 bits x is multiplied as it is. See `ort_ops/linear_w4a8/op.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl

from ort_ops.linear_w4a8.op import LinearOp
from tools.triton_twins.rounding import round_all

COLUMNS, DEPTH = 64, 64  # outputs and inputs of a tile
MOST_ROWS = 64


@dataclass(frozen=True)
class TwinWeight:
    """One weight as the operator has it; `scales` and `steps` as in `op.Weight`."""

    codes: torch.Tensor  # int8 (K, N); 4 bits: uint8, two a byte, the first in the low half
    scales: torch.Tensor  # fp32 or fp16
    steps: torch.Tensor | None = None  # int8


@dataclass(frozen=True)
class LinearTwin:
    """A linear's format and sizes."""

    op: LinearOp
    depth: int
    width: int
    group: int
    activation_group: int
    step: float

    def __call__(
        self, x: torch.Tensor, weights: Sequence[TwinWeight], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """y (M, N) of x (M, K), in its type."""
        rows, along = len(x), self.activation_group
        # Triton's interpreter cuts off the bits that bfloat16 has no room for
        kind = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
        y = torch.empty(rows, self.width, dtype=kind, device=x.device)
        if not rows:
            return y.to(x.dtype)
        floats = self.op.activation_bits == 16
        if floats:  # fp16 has tensor cores, and bfloat16 becomes fp32 without loss
            codes, scales = (x if x.dtype == torch.float16 else x.float()), None
        else:
            codes, scales = round_all(x, along, self.step, self.op.top)
        tile = min(MOST_ROWS, max(16, triton.next_power_of_2(rows)))
        grid = (triton.cdiv(rows, tile), triton.cdiv(self.width, COLUMNS))
        gate, up = weights[0], weights[-1]
        multiply[grid](
            codes, scales, gate.codes, gate.scales, gate.steps, up.codes, up.scales, up.steps,
            bias, y, rows, self.depth, self.width, self.group, along, self._section,
            floats, self.op.weight_bits, self.op.channel, self.op.steps, self.op.gated,
            bias is not None,
            tile, COLUMNS, DEPTH,
        )  # fmt: skip
        return y.to(x.dtype)

    @property
    def _section(self) -> int:
        """Inputs that share both scales: products are summed over them."""
        if self.op.activation_bits == 16:
            return self.group
        return self.depth if self.op.channel else gcd(self.group, self.activation_group)


@triton.jit
def weight_codes(
    codes, steps, at, columns, there, width, group, BITS: tl.constexpr, STEPS: tl.constexpr
):
    """Integers (inputs, outputs) of a weight; 0 where nothing is `there`."""
    place = at.to(tl.int64)[:, None] * width + columns[None, :]
    if BITS == 8:
        return tl.load(codes + place, mask=there, other=0)
    both = tl.load(codes + place // 2, mask=there, other=0).to(tl.int32)
    four = (both >> ((place % 2) * 4).to(tl.int32)) & 15
    signed = (four ^ 8) - 8
    if STEPS:
        step = tl.load(
            steps + (at // group)[:, None] * width + columns[None, :], mask=there, other=0
        )
        signed = signed * step.to(tl.int32)
    return tl.where(there, signed, 0).to(tl.int8)


@triton.jit
def product(
    x, x_scales, codes, scales, steps, lines, columns, rows, depth, width, group, along, section,
    FLOATS: tl.constexpr, BITS: tl.constexpr, CHANNEL: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """x · W of a tile, in floats; codes, or x as it is and codes, are summed over a section."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    runs = depth // along
    for start in range(0, depth, section):
        end = tl.minimum(start + section, depth)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32 if FLOATS else tl.int32)
        for first in range(start, end, DEPTH):
            at = first + tl.arange(0, DEPTH)
            known = (lines[:, None] < rows) & (at[None, :] < end)
            a = tl.load(x + lines.to(tl.int64)[:, None] * depth + at[None, :], mask=known, other=0)
            there = (at[:, None] < end) & (columns[None, :] < width)
            b = weight_codes(codes, steps, at, columns, there, width, group, BITS, STEPS)
            if FLOATS:
                sums = tl.dot(a, b.to(a.dtype), sums, input_precision="ieee")
            else:
                sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        line = 0 if CHANNEL else start // group
        of_columns = tl.load(scales + line * width + columns, mask=columns < width, other=0.0)
        added = sums.to(tl.float32) * of_columns.to(tl.float32)[None, :]
        if not FLOATS:
            run = lines * runs + start // along
            added *= tl.load(x_scales + run, mask=lines < rows, other=0.0)[:, None]
        total += added
    return total


@triton.jit
def multiply(
    x, x_scales, gate, gate_scales, gate_steps, up, up_scales, up_steps, bias, y,
    rows, depth, width, group, along, section,
    FLOATS: tl.constexpr, BITS: tl.constexpr, CHANNEL: tl.constexpr, STEPS: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of y a program."""
    lines = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = product(
        x, x_scales, gate, gate_scales, gate_steps, lines, columns, rows, depth, width, group,
        along, section, FLOATS, BITS, CHANNEL, STEPS, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    if GATED:
        other = product(
            x, x_scales, up, up_scales, up_steps, lines, columns, rows, depth, width, group,
            along, section, FLOATS, BITS, CHANNEL, STEPS, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        total = tl.div_rn(total, 1.0 + tl.exp(-total)) * other
    if BIAS:
        added = tl.load(bias + columns, mask=columns < width, other=0.0)
        total += added.to(tl.float32)[None, :]
    there = (lines[:, None] < rows) & (columns[None, :] < width)
    place = lines.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=there)
