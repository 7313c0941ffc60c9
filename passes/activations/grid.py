"""Symmetric integer grids for the activations that enter a linear.

Every step is one that the emitted graphs take in the same order, so that equal inputs give equal
codes: the maximum times 1 / top, for instance, and never divided by it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LEAST_SCALE = 2.0**-24  # the least positive float16: what a token of zeros is divided by

Granularity = Literal["token", "group", "tensor"]


@dataclass(frozen=True)
class ActivationGrid:
    """How the inputs of a linear are rounded.

    "token": a scale a token, found at run time. "group": a scale a token and `group` channels, at
    run time. "tensor": one scale, found by calibration (`passes.activations.static`).
    """

    bits: int
    granularity: Granularity = "token"
    group: int | None = None  # channels that share a scale, with "group"
    clip: float = 1.0  # share of the largest value that the grid covers
    scale: float | None = None  # of the whole tensor, once it is calibrated

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"activations take 2 to 8 bits, not {self.bits}")
        if not 0 < self.clip <= 1:
            raise ValueError(f"clip is a share of the largest value, not {self.clip}")
        if (self.group is not None) != (self.granularity == "group"):
            raise ValueError(f"group {self.group} with granularity {self.granularity}")

    @property
    def top(self) -> int:
        """The largest code; the smallest is -top - 1, reached only where values are clipped."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def ready(self) -> bool:
        """Whether activations can be rounded: false for a static scale not yet calibrated."""
        return self.granularity != "tensor" or self.scale is not None


def activation_scales(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Scales of x (..., in) in fp32: (..., 1), or (..., in / group, 1) for groups."""
    if grid.granularity == "tensor":
        if grid.scale is None:
            raise ValueError("the static scale is not calibrated")
        return x.new_full((*x.shape[:-1], 1), grid.scale)
    largest = _parts(x, grid).abs().amax(-1, keepdim=True)
    step = torch.tensor(grid.clip / grid.top, dtype=torch.float32, device=x.device)
    return (largest * step).clamp_min(LEAST_SCALE)


def quantize_activations(x: Tensor, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """Codes in fp32, shaped as x (..., in), and the scales of `activation_scales`."""
    scales = activation_scales(x, grid)
    codes = (_parts(x, grid) / scales).round_().clamp_(-grid.top - 1, grid.top)
    return codes.reshape(x.shape), scales


def fake_quantize(x: Tensor, grid: ActivationGrid | None) -> Tensor:
    """x (..., in) rounded to the grid and back; x itself where there is none to round to yet."""
    if grid is None or not grid.ready:
        return x
    codes, scales = quantize_activations(x, grid)
    return (_parts(codes, grid) * scales).reshape(x.shape)


def _parts(x: Tensor, grid: ActivationGrid) -> Tensor:
    """x (..., in), or (..., in / group, group): values that share a scale along the last axis."""
    if grid.group is None:
        return x
    if x.shape[-1] % grid.group:
        raise ValueError(f"groups of {grid.group} do not divide {x.shape[-1]} channels")
    parts: Tensor = x.unflatten(-1, (-1, grid.group))
    return parts
