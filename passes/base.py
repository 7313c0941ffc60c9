"""What a pass is, how a list of passes runs, and what a weight pass sees of a model."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from passes.numerics import QuantizedLinear

Stats = dict[str, float]  # what a pass reports, written to the manifest
M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
T = TypeVar("T")

log = logging.getLogger(__name__)


class Pass(Protocol[M_contra]):
    """A frozen dataclass that is called: its fields are its settings, its repr is on record."""

    def __call__(self, model: M_contra, /) -> Stats:
        """Edit `model` in place; return numbers worth keeping in the manifest."""
        ...


@dataclass(frozen=True)
class Record:
    """One pass that has run."""

    step: str  # repr of the pass, so its settings are on record
    seconds: float
    stats: Stats


def run(passes: Sequence[Pass[M]], model: M, check: Callable[[M], None]) -> list[Record]:
    """Run `passes` in order over `model` and `check` its invariants after each.

    An error of a pass or of the check goes on to the caller, with a note that names the pass and
    those that ran before it.
    """
    records: list[Record] = []
    for step in passes:
        start = time.perf_counter()
        try:
            stats = step(model)
            check(model)
        except Exception as error:
            error.add_note(f"in pass {step!r}, after {[record.step for record in records]}")
            raise
        seconds = time.perf_counter() - start
        records.append(Record(repr(step), seconds, stats))
        log.info("[%d/%d] %s  %.1fs  %s", len(records), len(passes), step, seconds, stats)
    return records


@dataclass(frozen=True)
class LinearGroup:
    """Linears of one block that share one input, as the query, key and value projections do."""

    name: str
    linears: tuple[str, ...]


class Team(Protocol):
    """The processes that work on one model; calibration states and solves are shared out."""

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> None:
        """Replace `tensor`, on every process, by the sum over all of them."""
        ...

    def join(self, part: Tensor) -> Tensor:
        """The parts (rows, ...) of all processes, one below the other by rank, on every process."""
        ...

    def collect(self, item: T) -> list[T]:
        """`item` of every process, by rank, on every process."""
        ...


class Alone:
    """A team of one."""

    rank, size = 0, 1

    def sum(self, tensor: Tensor) -> None:
        """Nothing to add."""

    def join(self, part: Tensor) -> Tensor:
        return part

    def collect(self, item: T) -> list[T]:
        return [item]


def share(count: int, team: Team) -> slice:
    """Which of `count` rows this process takes: runs of nearly equal length, by rank."""
    return slice(count * team.rank // team.size, count * (team.rank + 1) // team.size)


class Block(Protocol):
    """One block of a model, as weight passes see it.

    A pass takes the groups in order: it quantizes one, replaces its linears, and goes on. So later
    groups see the inputs that the quantized earlier ones produce.
    """

    @property
    def name(self) -> str:
        """What messages call it, such as "block 3"."""
        ...

    @property
    def groups(self) -> Sequence[LinearGroup]:
        """All linears to quantize, in execution order."""
        ...

    @property
    def team(self) -> Team:
        """Who else works on this block; `inputs` are this process's share."""
        ...

    def weight(self, linear: str) -> Tensor:
        """The weight (out, in) in fp32. A pass does not write to it."""
        ...

    def replace(self, linear: str, quantized: QuantizedLinear) -> None:
        """From now on the block runs with the de-quantized weight."""
        ...

    def inputs(self, group: LinearGroup) -> Iterator[tuple[Tensor, Tensor]]:
        """Calibration inputs of a group, with what was replaced so far.

        Batches of x (T, in) fp32 and token weights w (T,) fp32; padding has weight 0.
        """
        ...
