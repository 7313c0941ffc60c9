"""Orthogonal changes of the basis that a linear's input is in, applied while the model runs.

With T orthogonal, `x W^T = (x T) (W T)^T`: the input is turned at run time, the weight beforehand.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """Channels seen as (a, b), times `left` (a, a) from the left and `right` (b, b) from the right.

    The whole is the Kronecker product of both, at a cost of a + b products a channel. Without
    `left`, every run of b channels is turned alike (block-diagonal); without `right`, only runs are
    mixed. Both are orthogonal, fp32.
    """

    left: Tensor | None = None
    right: Tensor | None = None

    def __post_init__(self) -> None:
        if self.left is None and self.right is None:
            raise ValueError("a rotation has at least one side")
        for side in (self.left, self.right):
            if side is not None and (side.ndim != 2 or side.shape[0] != side.shape[1]):
                raise ValueError(f"a side of a rotation is square, not {tuple(side.shape)}")

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., n) turned; a weight (out, n) too, whose rows are in the basis of the input."""
        runs: Tensor
        if self.left is not None:
            runs = x.unflatten(-1, (len(self.left), -1))
        else:
            assert self.right is not None
            runs = x.unflatten(-1, (-1, len(self.right)))
        if self.right is not None:
            runs = runs @ self.right
        if self.left is not None:
            runs = self.left.T @ runs
        return runs.flatten(-2)

    def to(self, device: str) -> "Rotation":
        """The same on another device."""
        sides = (None if side is None else side.to(device) for side in (self.left, self.right))
        return Rotation(*sides)


@dataclass(frozen=True, eq=False)
class Permutation:
    """Channel i of the result is channel order[i] of the input."""

    order: Tensor  # (n,) int64

    def __post_init__(self) -> None:
        if not torch.equal(self.order.sort().values, torch.arange(len(self.order)).to(self.order)):
            raise ValueError("an order holds every channel once")

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., n) in the new order; the same for a weight (out, n)."""
        return x[..., self.order]

    def to(self, device: str) -> "Permutation":
        """The same on another device."""
        return Permutation(self.order.to(device))


Transform = Rotation | Permutation
