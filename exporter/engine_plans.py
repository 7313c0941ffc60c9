"""Which engines a bundle is to have, and for which shapes of their inputs."""

from collections.abc import Sequence

from exporter.graph_kind import GraphKind
from exporter.manifest import EnginePlan, Span
from exporter.runtime.candidates import wanted
from exporter.runtime.settings import Settings

ENGINES = "engines"  # folder in a bundle
SHARES = (16, 4, 1)  # a range of canvas lengths ends at these parts of the longest
SHORTEST = 64  # tokens; below that a range of its own saves nothing


def plan_engines(
    kinds: Sequence[GraphKind], settings: Settings, canvas: int, batch: int
) -> list[EnginePlan]:
    """A plan for every graph of a bundle.

    For canvases of at most `canvas` tokens and `batch` sequences at once. Those that default
    decoding needs are marked: the graph without a cache and the one with it.
    """
    needed = default_kinds(kinds, settings)
    return [
        EnginePlan(
            graph=kind.name,
            path=f"{ENGINES}/{kind.name}.plan",
            default=kind in needed,
            profiles=profiles(kind, settings, canvas, batch),
        )
        for kind in kinds
    ]


def default_kinds(kinds: Sequence[GraphKind], settings: Settings) -> list[GraphKind]:
    """The first graph without a cache, and the first with one, that answers to `settings`."""
    asked, guided = wanted(settings), settings.cfg_scale > 0
    fit = [kind for kind in kinds if kind.guided == guided and asked <= set(kind.outputs)]
    firsts = [[kind for kind in fit if kind.cached == cached] for cached in (False, True)]
    return [first[0] for first in firsts if first]


def profiles(kind: GraphKind, settings: Settings, canvas: int, batch: int) -> list[dict[str, Span]]:
    """What each variable axis of a graph may be, one table a range of lengths.

    A cached graph is fed a block, or two while one is stored, in nearly all calls: that is a range
    of its own. Predictions are asked for at the places of an answer at most.
    """
    block = min(settings.block_length, canvas)
    edges = [canvas // share for share in SHARES if canvas // share >= SHORTEST or share == 1]
    if kind.cached:
        step = min(2 * block + 1, canvas)  # and the row before, which a logits shift reads
        edges = [step, *(edge for edge in edges if edge > step)]
    rows = 2 if kind.guided else 1
    found: list[dict[str, Span]] = []
    for least, edge in zip([1, *(edge + 1 for edge in edges)], edges, strict=False):
        best = block if kind.cached and edge == edges[0] else edge
        most = min(max(settings.gen_length, block), edge)
        table = {"Q" if kind.cached else "S": (least, best, edge)}
        table |= {"W": (1, min(block, most), most), "rows": (rows, rows, rows * batch)}
        found.append(table | ({"R": (1, block, block)} if kind.shadow else {}))
    return found
