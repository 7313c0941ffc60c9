"""A team of threads of one process: `passes.base.Team` without torch.distributed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

from passes.base import Team

T = TypeVar("T")
SECONDS = 60  # after which a member that waits for the others gives up


class ThreadTeam:
    """One member; `table` and `barrier` are those of the whole team."""

    def __init__(self, rank: int, table: list[Any], barrier: Barrier) -> None:
        self.rank, self.size = rank, len(table)
        self.table, self.barrier = table, barrier

    def collect(self, item: T) -> list[T]:
        self.table[self.rank] = item
        self.barrier.wait(SECONDS)
        found = list(self.table)
        self.barrier.wait(SECONDS)
        return found

    def sum(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack(self.collect(tensor.clone())).sum(0))

    def join(self, part: Tensor) -> Tensor:
        return torch.cat(self.collect(part))


def run_as_team(size: int, work: Callable[[Team], T]) -> list[T]:
    """What `work` returns on every member of a team of `size`, by rank.

    A member that fails takes the others with it: its error is raised here.
    """
    table: list[Any] = [None] * size
    barrier = Barrier(size)

    def member(rank: int) -> T:
        try:
            return work(ThreadTeam(rank, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(member, range(size)))
