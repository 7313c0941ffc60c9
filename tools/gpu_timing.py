"""Times of work on a GPU: contestants take turns, in graphs that leave the host no part in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

CACHE = 256 << 20  # bytes of operands that are taken turns with: more than any cache holds

Run = Callable[[int], object]  # on one of the copies of its operands


@dataclass(frozen=True)
class Contestant:
    """What takes part under a name, or why it does not."""

    name: str
    run: Run | None
    absent: str = ""


def contestant(name: str, make: Callable[[], Run]) -> Contestant:
    """Made and called once; whatever goes wrong keeps it out, and nobody else."""
    import torch

    try:
        run = make()
        run(0)
        torch.cuda.synchronize()
    except Exception as error:  # of packages of others, and of kernels that refuse a shape
        return Contestant(name, None, f"{type(error).__name__}: {error}".splitlines()[0])
    return Contestant(name, run)


def copies(size: int) -> int:
    """How many operands of `size` bytes do not fit into a cache together."""
    return max(2, -(-CACHE // size))


def seconds_of(run: Run, calls: int) -> float:
    """Of one call, by events around several that wait in the device's queue together."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for turn in range(calls):
        run(turn)
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3 / calls


def as_graph(run: Run, calls: int) -> Run:
    """Several calls as one launch: short kernels do not wait for Python then."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for turn in range(3):
            run(turn)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(calls):
            run(turn)
    return lambda _: graph.replay()


def as_graphs(field: Mapping[str, Run], calls: int) -> tuple[dict[str, Run], dict[str, str]]:
    """Contestants as graphs of several calls; who cannot be one, and why, is called that often."""
    works: dict[str, Run] = {}
    plain: dict[str, str] = {}
    for name, run in field.items():
        try:
            works[name] = as_graph(run, calls)
        except RuntimeError as error:  # it waits for the device, or allocates by itself
            works[name] = _by_calls(run, calls)
            plain[name] = f"timed call by call: {error}".splitlines()[0]
    return works, plain


def _by_calls(run: Run, calls: int) -> Run:
    return lambda _: [run(turn) for turn in range(calls)]


def take_turns(field: Mapping[str, Run], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of a call of each contestant, one a round."""
    return rounds_of(as_graphs(field, calls)[0], rounds, calls)


def rounds_of(works: Mapping[str, Run], rounds: int, calls: int) -> dict[str, list[float]]:
    """The same, of what `as_graphs` made."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(0)
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, 1) / calls)
    return seconds
