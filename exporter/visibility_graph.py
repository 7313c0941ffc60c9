"""Positions in the graph: where fed tokens stand, what they see, and where keys are written.

The twin of `make_context` in model.py.
"""

from dataclasses import dataclass

import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_builder import INT64, Builder


@dataclass(frozen=True)
class Visibility:
    """Of Q fed tokens among S positions; without a cache these are the same."""

    positions: ir.Value  # int64 (rows, Q), for the rotary embedding
    visible: ir.Value  # bool (rows, 1, Q, S): who sees whom
    common: ir.Value  # bool (rows, S): keys that every query of the canvas sees
    write: ir.Value | None  # int64 (rows,): where the first fed token stands in a cache


def visibility(
    g: Builder, spec: Spec, ids: ir.Value, key_mask: ir.Value, start: ir.Value | None
) -> Visibility:
    """For ids (rows, Q) and key_mask (rows, S); `start` int64 (1,) is their place in a cache."""
    write = None
    if start is not None:
        write = g.op("Expand", start, g.op("Shape", ids, start=0, end=1))
    if spec.positions == "absolute":
        positions = g.op("Expand", _fed(g, ids, start), g.op("Shape", ids))
    else:
        positions = _at_fed(g, _counted(g, key_mask), ids, start)
    shown = g.op("Unsqueeze", key_mask, g.ints([1, 2]))
    if spec.attention == "full":
        return Visibility(positions, _to_queries(g, shown, ids, key_mask), key_mask, write)
    assert spec.block_length is not None
    blocks = g.op("Div", _counted(g, key_mask), g.ints([spec.block_length]))
    own = g.op("Unsqueeze", _at_fed(g, blocks, ids, start), g.ints([1, 3]))
    reached = g.op("LessOrEqual", g.op("Unsqueeze", blocks, g.ints([1, 2])), own)
    common = g.op("And", key_mask, g.op("Equal", blocks, g.ints([0])))
    return Visibility(positions, g.op("And", reached, shown), common, write)


def _fed(g: Builder, ids: ir.Value, start: ir.Value | None) -> ir.Value:
    """Positions (Q,) of the fed tokens."""
    length = g.op("Squeeze", g.op("Shape", ids, start=1, end=2))
    steps = g.op("Range", g.int_scalar(0), length, g.int_scalar(1))
    return steps if start is None else g.op("Add", steps, start)


def _counted(g: Builder, key_mask: ir.Value) -> ir.Value:
    """How many positions before each are shown (rows, S)."""
    count = g.op("CumSum", g.cast(key_mask, INT64), g.int_scalar(1))
    return g.op("Max", g.op("Sub", count, g.ints([1])), g.ints([0]))


def _at_fed(g: Builder, x: ir.Value, ids: ir.Value, start: ir.Value | None) -> ir.Value:
    """x (rows, S) at the fed positions (rows, Q)."""
    return x if start is None else g.op("Gather", x, _fed(g, ids, start), axis=1)


def _to_queries(g: Builder, visible: ir.Value, ids: ir.Value, key_mask: ir.Value) -> ir.Value:
    """(rows, 1, 1, S) for each query: ONNX Runtime does not broadcast masks of attention."""
    rows, fed = (g.op("Shape", ids, start=n, end=n + 1) for n in (0, 1))
    length = g.op("Shape", key_mask, start=1, end=2)
    return g.op("Expand", visible, g.op("Concat", rows, g.ints([1]), fed, length, axis=0))
