"""Quantized weights of a simulated model, multiplied as integers by the kernels for GPUs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from passes.activations.grid import ActivationGrid
from passes.numerics import QuantizedLinear

if TYPE_CHECKING:
    from ort_ops.linear_w4a8.op import LinearOp


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A weight (K, N) as the operators take it; see ort_ops/linear_w4a8/op.py."""

    bits: Literal[4, 8]
    group: int
    codes: Tensor  # int8 (K, N), or two of 4 bits a byte
    scales: Tensor  # fp16 (ceil(K / group), N), or (N,)
    steps: Tensor | None  # int8 (ceil(K / group), N): scales are (N,)

    def takes(self, grid: ActivationGrid) -> bool:
        """Whether an operator multiplies it by inputs on `grid`."""
        return self._operator(grid) is not None

    def _operator(self, grid: ActivationGrid) -> "LinearOp | None":
        from ort_ops.linear_w4a8.op import OPS, LinearOp  # 40 MB that quantizing can use

        if grid.granularity == "tensor":
            return None
        channel = grid.granularity == "token"
        op = LinearOp(self.bits, grid.bits, channel)  # type: ignore[arg-type]  # OPS tells
        one_scale = len(self.scales) == 1
        fits = one_scale if channel and self.bits == 8 else op.steps == (self.steps is not None)
        return op if fits and op in OPS else None

    def product(self, x: Tensor, grid: ActivationGrid, bias: Tensor | None) -> Tensor:
        """x · W + bias (..., N) of x (..., K), which is rounded to `grid` on the way.

        `takes` says of what grids.
        """
        from ort_ops import torch_binding  # defines operators, which only this needs

        op = self._operator(grid)
        assert op is not None
        plain = op.channel and self.steps is None
        y: Tensor = torch_binding.linear(
            x.contiguous(), [self.codes], [self.scales[0] if plain else self.scales],
            [] if self.steps is None else [self.steps], bias, op.weight_bits, op.activation_bits,
            op.channel, x.shape[-1] if plain else self.group, grid.group or x.shape[-1],
            grid.clip / op.top,
        )  # fmt: skip
        return y


def integer_weight(linear: QuantizedLinear) -> IntegerWeight | None:
    """The same numbers, on the same device; None: no operator has 8 bits and steps."""
    codes = linear.codes.T.contiguous()
    bits: Literal[4, 8] = 4 if linear.bits <= 4 else 8
    if bits == 8 and linear.channel is not None:
        return None
    stored = _packed(codes) if bits == 4 else codes
    if linear.channel is None:
        return IntegerWeight(bits, linear.group, stored, linear.scales.T.half().contiguous(), None)
    steps = linear.steps().T.to(torch.int8).contiguous()
    return IntegerWeight(bits, linear.group, stored, linear.channel[:, 0].half(), steps)


def _packed(codes: Tensor) -> Tensor:
    """As `ort_ops.int4.pack_int4`, wherever the codes are."""
    nibbles = F.pad(codes.flatten() & 15, (0, codes.numel() % 2)).view(-1, 2)
    packed: Tensor = (nibbles[:, 0] | nibbles[:, 1] << 4).view(torch.uint8)
    return packed
