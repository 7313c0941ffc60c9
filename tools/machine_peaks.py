"""What the machine at hand can do at best: multiply-adds a second, bytes of memory a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROWS = 1024  # of the square matrices that are multiplied
READ_BYTES = 256 * 2**20  # well past any cache


@dataclass(frozen=True)
class Peaks:
    """The best of some tries, with as many threads as torch is set to."""

    fp32: float  # multiply-adds a second
    bf16: float
    int8: float
    read: float  # bytes a second


def measure_peaks(tries: int = 5) -> Peaks:
    """Products of square matrices, and the sum over a large array."""
    floats = torch.randn(ROWS, ROWS)
    halves, codes = floats.bfloat16(), (8 * floats).to(torch.int8)
    array = torch.ones(READ_BYTES // 4)
    return Peaks(
        fp32=ROWS**3 / fastest(lambda: floats @ floats, tries),
        bf16=ROWS**3 / fastest(lambda: halves @ halves, tries),
        int8=ROWS**3 / fastest(lambda: torch._int_mm(codes, codes), tries),
        read=READ_BYTES / fastest(array.sum, tries),
    )


def fastest(work: Callable[[], object], tries: int) -> float:
    """Least seconds of some tries, after one that is not counted."""
    work()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
