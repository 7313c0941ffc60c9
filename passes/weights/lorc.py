"""LoRC of ZeroQuant-V2 (arXiv 2303.08302, section 5): a low-rank correction beside the weight.

What rounding takes away, D = W - Q, is approximated by two thin matrices. They are multiplied with
the float input at run time, which costs `rank (in + out)` products a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from passes.base import Block, LinearGroup, LowRank, Pass, Stats, seen_enough
from passes.weights.hessian import output_error
from passes.weights.layerwise import collect

LEAST_DAMPING = 1e-6  # in units of the mean of the diagonal: H of few tokens is singular


@dataclass(frozen=True)
class Lorc:
    """Run a quantizer over a block, then correct every linear that it replaced."""

    inner: Pass[Block]  # the quantizer; it leaves the basis of the weights alone
    rank: int = 8
    weighted: bool = True  # for the least error of the output, not of the weight

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"a correction has at least rank 1, not {self.rank}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats of the quantizer, and the mean relative squared error before and after.

        It is the error of the outputs if `weighted`, else that of the weights. Groups are corrected
        in order: each is measured on the inputs that the corrected ones before it produce.
        """
        groups = [group for group in block.groups if group.grid is not None]
        floats = {name: block.weight(name) for group in groups for name in group.linears}
        stats = self.inner(block)
        errors: list[tuple[float, float]] = []
        for group in groups:
            errors += self.correct(block, group, [floats[name] for name in group.linears])
        before, after = (sum(column) for column in zip(*errors, strict=True)) if errors else (0, 0)
        count = max(len(errors), 1)
        return {**stats, "error_before_lorc": before / count, "error_after_lorc": after / count}

    def correct(
        self, block: Block, group: LinearGroup, floats: list[Tensor]
    ) -> list[tuple[float, float]]:
        """Correct the linears of a group; the error of each, before and after.

        One that saw hardly a token is corrected for the least error of its weights.
        """
        weighted = self.weighted and seen_enough(block, group)
        hessian = collect(block, group, floats[0])[0] if weighted else None
        root = None if hessian is None else square_root(hessian)
        errors = []
        for number, (name, weight) in enumerate(zip(group.linears, floats, strict=True)):
            quantized, (out, width) = block.weight(name), weight.shape
            rank = min(self.rank, out, width)
            left, right = weight.new_zeros(out, rank), weight.new_zeros(rank, width)
            if number % block.team.size == block.team.rank:  # decompositions are shared out
                found = low_rank(weight - quantized, root, rank)
                left, right = found.left, found.right
            block.team.sum(left)
            block.team.sum(right)
            block.correct(name, LowRank(left, right))
            steps = (quantized, quantized + left @ right)
            before, after = (relative_error(weight, step, hessian) for step in steps)
            errors.append((before, after))
        return errors


def relative_error(weight: Tensor, approximation: Tensor, hessian: Tensor | None) -> float:
    """The relative squared error of the output, or of the weight itself without a Hessian."""
    if hessian is not None:
        return output_error(weight, approximation, hessian)
    total = float(weight.double().square().sum())
    return float((weight - approximation).double().square().sum()) / total if total else 0.0


def low_rank(difference: Tensor, root: Tensor | None, rank: int) -> LowRank:
    """The `rank` that takes most of `difference` D (out, in) away, with factors in float16 values.

    Given a root C (in, in) of the Hessian, it has the least `tr((D - L R) H (D - L R)^T)`: by
    Eckart and Young `L R C` is the truncated decomposition of D C, so L spans its first left
    singular vectors and R = L^T D. Without a root, H is the identity.
    """
    wide = difference.double()
    vectors = torch.linalg.svd(wide if root is None else wide @ root, full_matrices=False)[0]
    left = vectors[:, :rank]
    right = left.T @ wide
    # Both factors get rows of about the same size, so that neither leaves the range of float16.
    size = right.norm(dim=1).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return LowRank((left * size).half().float(), (right / size[:, None]).half().float())


def square_root(hessian: Tensor) -> Tensor:
    """A lower triangle C (in, in) in fp64 with `C C^T = hessian`, up to the damping that it needs.

    Columns that no token ever touched are damped as much as the others: they have no say.
    """
    diagonal = hessian.diagonal().double()
    mean = float(diagonal.mean()) or 1.0
    strength = LEAST_DAMPING
    while True:
        damped = hessian.double()
        damped.diagonal().add_(strength * mean)
        found = torch.linalg.cholesky_ex(damped)
        if not found.info:
            lower: Tensor = found.L
            return lower
        if strength >= 1:
            raise ValueError("Hessian not positive definite, even with its mean on the diagonal")
        strength *= 10
