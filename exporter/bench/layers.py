"""Where the time of a forward goes, layer by layer, as the runtime reports it."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.runtime.session import Session
from exporter.runtime.session_ort import OrtSession
from exporter.runtime.session_trt import TrtSession

CALLS = 5  # that are averaged, after one that does not count


@dataclass(frozen=True)
class Layer:
    """A layer of an engine, or a node of a graph; `kind` is its operator where that is told."""

    name: str
    kind: str
    milliseconds: float  # a call


def layers_of(session: Session, call: Callable[[], object]) -> list[Layer] | None:
    """The layers that `call` of a session runs, longest first; None where nothing reports them.

    An engine's session reports from now on, which slows it: time it before.
    """
    if isinstance(session, TrtSession):
        return _of_engine(session, call)
    if isinstance(session, OrtSession):
        return _of_graph(session, call)
    return None


def _of_engine(session: TrtSession, call: Callable[[], object]) -> list[Layer]:
    seen: list[tuple[str, str, float]] = []
    session.watch_layers(lambda name, ms: seen.append((name, "", ms)))
    call()
    seen.clear()
    for _ in range(CALLS):
        call()
    return _summed(seen)


def _of_graph(session: OrtSession, call: Callable[[], object]) -> list[Layer]:
    def calls() -> None:
        for _ in range(1 + CALLS):
            call()

    with TemporaryDirectory() as folder:
        events = json.loads(session.profiled(calls, Path(folder) / "layers").read_text())
    nodes = [
        (e["name"].removesuffix("_kernel_time"), e["args"].get("op_name", ""), e["dur"] / 1000)
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    ]  # in the order in which they ran: each call has as many
    return _summed(nodes[len(nodes) // (1 + CALLS) :])


def _summed(seen: Iterable[tuple[str, str, float]]) -> list[Layer]:
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for name, kind, milliseconds in seen:
        sums[name, kind] += milliseconds / CALLS
    found = [Layer(name, kind, total) for (name, kind), total in sums.items()]
    return sorted(found, key=lambda layer: -layer.milliseconds)
