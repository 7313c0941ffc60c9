"""Emitted graphs as text that people can compare, one node a line.

`python -m tests.graph_text` rewrites the listings in tests/golden/graphs.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from exporter.graph import build_graph
from exporter.graph_kind import GraphKind
from tests.fixtures_lower import GOLDEN_FAMILIES, golden, lower

LISTINGS = Path(__file__).parent / "golden" / "graphs"


def listings(family: str) -> dict[str, str]:
    """By file name: graphs of a golden model cut to one block, with 4-bit weights in groups of 32.

    The plainest one, and the one that keeps keys and values.
    """
    with TemporaryDirectory() as folder:
        lowered = lower(golden(family), "w4a16-rtn", Path(folder))
        spec = replace(lowered.checkpoint.spec, layers=1)
        return {
            f"{family}{'-cached' * cached}.txt": _text(
                build_graph(spec, lowered.stored, ir.DataType.FLOAT, GraphKind(cached=cached)).graph
            )
            for cached in (False, True)
        }


def _text(graph: ir.Graph) -> str:
    parts = (
        _values("in", graph.inputs),
        _values("stored", graph.initializers.values()),
        _nodes(graph),
        _values("out", graph.outputs),
    )
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _values(role: str, values: Iterable[ir.Value]) -> list[str]:
    return [f"{role} {value.name}: {_type(value)}" for value in values]


def _type(value: ir.Value) -> str:
    assert value.dtype is not None
    assert value.shape is not None
    return f"{value.dtype.name}[{', '.join(str(d) for d in value.shape)}]"


def _nodes(graph: ir.Graph) -> list[str]:
    """`result = Op(inputs) attributes`; what has a name goes by it, the rest is %n."""
    named = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
    names = {value: str(value.name) for value in named}
    lines = []
    for node in graph:
        for value in node.outputs:
            names.setdefault(value, f"%{len(names) - len(named)}")
        outputs = ", ".join(names[value] for value in node.outputs)
        inputs = ", ".join(names[value] for value in node.inputs if value is not None)
        attributes = "".join(f" {a.name}={a.value}" for a in node.attributes.values())
        lines.append(f"{outputs} = {node.op_type}({inputs}){attributes}")
    return lines


if __name__ == "__main__":
    LISTINGS.mkdir(exist_ok=True)
    for each in GOLDEN_FAMILIES:
        for name, text in listings(each).items():
            (LISTINGS / name).write_text(text)
