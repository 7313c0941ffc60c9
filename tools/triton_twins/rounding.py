"""Vectors to codes, for all twins."""

import torch
import triton
import triton.language as tl

WHOLE = tl.constexpr(12582912.0)  # 1.5 · 2^23: a sum with it is whole, rounded to even
LEAST_SCALE = tl.constexpr(2.0**-24)


@triton.jit
def rint(x):
    """x, of less than 2^22, rounded to even. Larger ones may stay as they are: they are clipped."""
    return tl.where(tl.abs(x) < 4194304.0, (x + WHOLE) - WHOLE, x)


@triton.jit
def codes_of(x, scale, least, most):
    """x / scale, rounded, between the least and the largest code."""
    return tl.minimum(tl.maximum(rint(tl.div_rn(x, scale)), least), most)


@triton.jit
def loaded_runs(x, mean, run, at, runs, length, shared, MEAN: tl.constexpr):
    """Some numbers (runs, at) of runs of `length`, without their mean."""
    there = (run[:, None] < runs) & (at[None, :] < length)
    values = tl.load(x + run[:, None] * length + at[None, :], mask=there, other=0.0)
    values = values.to(tl.float32)
    if MEAN:
        own = (run // shared)[:, None] * length + at[None, :]
        values -= tl.load(mean + own, mask=there, other=0.0)
    return values, there


@triton.jit
def round_runs(
    x, mean, codes, scales, runs, length, shared, step, top,
    MEAN: tl.constexpr, RUNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program RUNS runs of `length` numbers: their scales, and codes from -top - 1 to top.

    `shared` runs in a row lose the same `mean` first.
    """
    run = tl.program_id(0).to(tl.int64) * RUNS + tl.arange(0, RUNS)
    largest = tl.zeros((RUNS, BLOCK), tl.float32)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        values, _ = loaded_runs(x, mean, run, at, runs, length, shared, MEAN)
        largest = tl.maximum(largest, tl.abs(values))
    scale = tl.maximum(tl.max(largest, 1) * step, LEAST_SCALE)
    tl.store(scales + run, scale, mask=run < runs)
    for first in range(0, length, BLOCK):
        at = first + tl.arange(0, BLOCK)
        values, there = loaded_runs(x, mean, run, at, runs, length, shared, MEAN)
        rounded = codes_of(values, scale[:, None], -top - 1.0, top).to(tl.int8)
        tl.store(codes + run[:, None] * length + at[None, :], rounded, mask=there)


def round_all(
    x: torch.Tensor, length: int, step: float, top: int,
    mean: torch.Tensor | None = None, shared: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Codes of all runs of `length` numbers of x, in its shape, and a scale a run."""
    codes, runs = torch.empty_like(x, dtype=torch.int8), x.numel() // length
    scales = torch.empty(runs, device=x.device)
    if runs:
        block = min(1024, triton.next_power_of_2(length))
        tile = max(1, 4096 // block)
        round_runs[(triton.cdiv(runs, tile),)](
            x, mean, codes, scales, runs, length, shared, step, float(top), mean is not None,
            tile, block, enable_fp_fusion=False,
        )  # fmt: skip
    return codes, scales
