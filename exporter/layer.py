"""A block as it runs: its tensors, and what is done to activations on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from exporter.integer_weight import IntegerWeight
from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid, fake_quantize
from passes.base import LinearGroup, LowRank
from passes.transforms.online import Transform


@dataclass(frozen=True)
class Layer:
    """Weights by our names, and per group of linears how its input is turned and rounded.

    Quantized weights stand here de-quantized, and where kernels of ours are to multiply them as
    integers, too. Nothing but `tensors` is a plain float block.
    """

    tensors: Mapping[str, torch.Tensor]
    transforms: Mapping[str, tuple[Transform, ...]] = field(default_factory=dict)  # by group
    activations: Mapping[str, ActivationGrid] = field(default_factory=dict)  # by group
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)  # by linear
    attention: AttentionGrid | None = None
    integers: Mapping[str, IntegerWeight] = field(default_factory=dict)  # by linear

    def enter(self, group: LinearGroup, x: torch.Tensor) -> torch.Tensor:
        """The input x (..., in) of a group in the basis of its weights, not yet rounded."""
        for step in self.transforms.get(group.name, ()):
            x = step(x)
        return x

    def leave(self, group: LinearGroup, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs (..., out) of a group's linears for what `enter` returned."""
        grid = self.activations.get(group.name)
        weights = [self.integers.get(name) for name in group.linears]
        if grid is not None and all(w is not None and w.takes(grid) for w in weights):
            outputs = [
                weight.product(x, grid, self.tensors.get(f"{name}_bias"))
                for name, weight in zip(group.linears, weights, strict=True)
                if weight is not None
            ]
        else:
            rounded = fake_quantize(x, grid)
            outputs = [
                F.linear(rounded, self.tensors[name], self.tensors.get(f"{name}_bias"))
                for name in group.linears
            ]
        return [self._corrected(name, y, x) for name, y in zip(group.linears, outputs, strict=True)]

    def _corrected(self, name: str, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        beside = self.low_rank.get(name)
        return y if beside is None else y + (x @ beside.right.T) @ beside.left.T
