"""The Hessian of a linear's output error over calibration tokens, and its factor for GPTQ.

For a linear with inputs x_t of weight w_t the error of a weight D off by one row d is
`sum_t w_t^2 (d . x_t)^2 = d H d^T / 2` with `H = 2 sum_t w_t^2 x_t x_t^T` (in, in).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 256  # of the Hessian that one product makes
COLUMNS_AT_ONCE = 256  # of the inverse factor that are in fp64 together
LARGEST_DAMPING = 1.0  # as much as the mean of the diagonal: beyond it, little of H is left


def accumulate_hessian(hessian: Tensor, x: Tensor, w: Tensor) -> int:
    """Add `2 sum_t w_t^2 x_t x_t^T` to `hessian` (in, in) fp32 in place; return the tokens counted.

    x (T, in) and w (T,) are fp32. Tokens of weight 0 are left out before the product, so padding
    changes no bit, whatever it holds. A weight of 1 multiplies exactly: uniform weights give the
    very bits of plain GPTQ. The customary division by the number of tokens is left out: a constant
    factor cancels in the solve, and sums of several processes simply add up.
    """
    seen = w != 0
    y = x[seen].mul_(w[seen, None])
    width = len(hessian)
    for start in range(0, width, ROWS_AT_ONCE):  # the other triangle is the same
        stop = min(start + ROWS_AT_ONCE, width)
        hessian[start:stop, start:].addmm_(y[:, start:stop].T, y[:, start:], alpha=2)
        hessian[stop:, start:stop] = hessian[start:stop, stop:].T
    return len(y)


def output_error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """Relative squared output error `tr(D H D^T) / tr(W H W^T)`, D = weight - approximation.

    Both are (out, in). 0 where the output itself is 0, as for an expert that saw no token.
    """
    total = quadratic(weight, hessian)
    return quadratic(weight - approximation, hessian) / total if total > 0 else 0.0


def quadratic(rows: Tensor, hessian: Tensor) -> float:
    """`tr(rows hessian rows^T)` for rows (out, in), summed in fp64."""
    return float((rows @ hessian).mul_(rows).sum(dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Factor:
    """The damped inverse Hessian, in the order in which GPTQ takes the columns."""

    upper: Tensor  # (in, in) fp32 upper triangle U, U^T U = (H + damping * mean(diag H) I)^-1
    order: Tensor | None  # (in,) int64, original column of each place; None: as they stand
    dead: int  # columns that no token ever touched
    retries: int  # times the damping had to be raised


def factorize(hessian: Tensor, damping: float, act_order: bool) -> Factor:
    """Factor `hessian` (in, in) for GPTQ, columns by falling diagonal if `act_order`.

    Dead columns (a zero on the diagonal) get the mean of the diagonal: they stay uncoupled from all
    others, and GPTQ rounds them to nearest. Damping is in units of that mean and goes up tenfold
    until the Cholesky factorization in fp64 succeeds; ValueError beyond 1, or if H is not finite.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise ValueError("calibration inputs are not finite, or too large to be squared in fp32")
    dead = diagonal == 0
    mean = float(diagonal[~dead].double().mean()) if not dead.all() else 1.0
    order = diagonal.argsort(descending=True, stable=True) if act_order else None
    h = hessian if order is None else hessian[order][:, order]
    if dead.any():
        h = h.clone()
        h.diagonal()[dead if order is None else dead[order]] = mean
    strength, retries = damping, 0
    while (upper := inverse_factor(h, strength * mean)) is None:
        if strength >= LARGEST_DAMPING:
            raise ValueError(f"Hessian not positive definite, even with damping {strength:g}")
        strength, retries = strength * 10, retries + 1
    return Factor(upper, order, int(dead.sum()), retries)


def inverse_factor(h: Tensor, shift: float) -> Tensor | None:
    """Upper triangle U (fp32) with `U^T U = (h + shift I)^-1`; None if not positive definite.

    With J the reversal of the columns, `J (h + shift I) J = L L^T`, hence `U = J L^-1 J`: one
    factorization in fp64 and no inverse of h. A matrix of 12288 columns takes 1.2 GB in fp64: it is
    factorized in place, and U is solved for a run of columns at a time.
    """
    width = len(h)
    lower = h.flip(0, 1).double()
    lower.diagonal().add_(shift)
    failed = torch.empty((), dtype=torch.int32, device=h.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if failed.item():
        return None
    upper = torch.zeros_like(h)
    for start in range(0, width, COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, width)
        found = inverse_columns(lower, start, stop)
        upper[: width - start, width - stop : width - start] = found.flip(0, 1)
    return upper


def inverse_columns(lower: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` and below of the columns start … stop - 1 of the inverse of a lower triangle.

    Forward substitution by blocks, so that nothing of the size of `lower` is copied.
    """
    width = len(lower)
    found = torch.zeros(width - start, stop - start, dtype=lower.dtype, device=lower.device)
    found.fill_diagonal_(1.0)
    for at in range(start, width, COLUMNS_AT_ONCE):
        end = min(at + COLUMNS_AT_ONCE, width)
        rows = found[at - start : end - start]
        rows -= lower[at:end, start:at] @ found[: at - start]
        rows.copy_(torch.linalg.solve_triangular(lower[at:end, at:end], rows, upper=False))
    return found
