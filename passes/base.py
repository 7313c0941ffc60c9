"""What a pass is, how a list of passes runs, and what a weight pass sees of a model."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid
from passes.numerics import QuantizedLinear, WeightGrid
from passes.transforms.online import Transform

Stats = dict[str, float]  # what a pass reports, written to the manifest
M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
T = TypeVar("T")

LEAST_TOKENS = 8  # of calibration, below which nothing is fitted to what a group saw

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
    source: str = ""  # what makes the input, channel by channel: a norm or another linear
    grid: WeightGrid | None = None  # of the weights; None: they stay float
    activation: ActivationGrid | None = None  # of the input; None: it stays float


@dataclass(frozen=True)
class Heads:
    """How attention is divided; query head h reads key and value head `h * kv_heads // heads`."""

    heads: int
    kv_heads: int
    width: int  # channels of a head


@dataclass(frozen=True, eq=False)
class LowRank:
    """A correction beside a quantized weight, `left @ right`, computed from the float input."""

    left: Tensor  # (out, rank) fp32, float16 values
    right: Tensor  # (rank, in) fp32, float16 values


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
    """One block of a model, as passes see it.

    A pass takes the groups in order: it quantizes one, replaces its linears, and goes on. So later
    groups see the inputs that the quantized earlier ones produce.
    """

    @property
    def name(self) -> str:
        """What messages call it, such as "block 3"."""
        ...

    @property
    def groups(self) -> Sequence[LinearGroup]:
        """All groups of linears, in execution order, with the grids they are to be put on."""
        ...

    @property
    def heads(self) -> Heads:
        """How the attention of this block is divided."""
        ...

    @property
    def team(self) -> Team:
        """Who else works on this block; `inputs` are this process's share."""
        ...

    def weight(self, linear: str) -> Tensor:
        """The weight (out, in) in fp32, as it runs now. A pass does not write to it."""
        ...

    def vector(self, name: str) -> Tensor | None:
        """A norm's gain or a linear's bias (`<linear>_bias`), fp32; None where there is none."""
        ...

    def set(self, name: str, tensor: Tensor) -> None:
        """From now on the block runs with another float weight, gain or bias of the same shape."""
        ...

    def replace(self, linear: str, quantized: QuantizedLinear) -> None:
        """From now on the block runs with the de-quantized weight."""
        ...

    def correct(self, linear: str, correction: LowRank) -> None:
        """From now on the block adds a low-rank correction to the linear's output."""
        ...

    def transform(self, group: LinearGroup, step: Transform) -> None:
        """From now on the input of a group goes through `step`, behind those already there.

        The weights stay as they are: the pass turns them too.
        """
        ...

    def quantize_inputs(self, group: LinearGroup, grid: ActivationGrid) -> None:
        """The input of a group is rounded to `grid`, from when its weights are quantized on."""
        ...

    def attention(self) -> AttentionGrid | None:
        """The grids of the attention operands; None: all float."""
        ...

    def quantize_attention(self, grid: AttentionGrid) -> None:
        """Attention runs on these grids, from when the weights before it are quantized on."""
        ...

    def inputs(self, group: LinearGroup) -> Iterator[tuple[Tensor, Tensor]]:
        """Calibration inputs of a group, with what was replaced so far.

        Batches of x (T, in) fp32, transformed but not rounded, and token weights w (T,) fp32;
        padding has weight 0.
        """
        ...

    def tokens(self, group: LinearGroup) -> int:
        """How many calibration tokens that weigh anything enter a group, over all processes."""
        ...

    def positioned_keys(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Calibration keys (B, kv heads, S, K) with their positions, w (B, S), fp32, as above."""
        ...

    def attended(self, grid: AttentionGrid | None) -> Iterator[tuple[Tensor, Tensor]]:
        """What attention on a grid makes of the calibration inputs; None: in floats.

        Batches of y (B, S, heads, K) and token weights w (B, S), fp32, as above.
        """
        ...

    def operands(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Calibration operands of P V: p (B, heads, S, S), v (B, kv heads, S, K), w (B, S), fp32.

        p are the float softmax outputs, w the token weights of the queries; padded keys have
        p = 0 and padded queries w = 0.
        """
        ...


def seen_enough(block: Block, group: LinearGroup) -> bool:
    """Whether a group saw enough calibration tokens to fit anything to them.

    An expert to which hardly a token is routed did not. What a pass then leaves out keeps the
    function of the block; its weights are rounded to nearest.
    """
    return block.tokens(group) >= LEAST_TOKENS
