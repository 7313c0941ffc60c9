"""Several processes on one build, started with `torchrun`: one for each GPU, or some on the CPU.

Calibration states are shared out, Hessians are summed over all, the rows of every solve are shared
out again. Rank 0 alone writes; the others leave when the last block is quantized.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from exporter.errors import UserError
from passes.base import Alone, Team

T = TypeVar("T")


class Torchrun:
    """`passes.base.Team` over an initialised torch.distributed group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)

    def join(self, part: torch.Tensor) -> torch.Tensor:
        counts = [int(n) for n in self.collect(len(part))]
        padded = part.new_zeros(max(counts), *part.shape[1:])
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    def collect(self, item: T) -> list[T]:
        """`item` of every process, by rank, on every process."""
        found: list[T | None] = [None] * self.size
        dist.all_gather_object(found, item)
        return found  # type: ignore[return-value]  # filled by now


def device_of(device: str) -> str:
    """The torch device of this process: with several GPUs, the one that torchrun gave it."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "There is no CUDA device for --device cuda",
            "Use --device cpu, or see `dqexport doctor`",
        )
    if device not in ("cpu", "cuda") and not device.startswith("cuda:"):
        raise UserError(f"Device `{device}` is not known", "Use cpu, cuda or cuda:N")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


@contextmanager
def open_team(device: str) -> Iterator[Team]:
    """The processes of `torchrun`, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Torchrun()
    finally:
        dist.destroy_process_group()
