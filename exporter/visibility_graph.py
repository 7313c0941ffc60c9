"""Positions in the graph: where fed tokens stand, what they see, and where keys are written.

The twin of `make_context` in model.py.
"""

from dataclasses import dataclass

import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_builder import FLOAT, INT64, Builder
from ort_ops.cached_attention.op import HIDDEN

INT32 = ir.DataType.INT32


@dataclass(frozen=True)
class Visibility:
    """Of Q fed tokens among S positions; without a cache these are the same."""

    positions: ir.Value  # int64 (rows, Q), for the rotary embedding
    visible: ir.Value  # bool (rows, 1, Q, S): who sees whom
    common: ir.Value  # bool (rows, S): keys that every query of the canvas sees
    query_scale: ir.Value | None  # (rows, Q, 1): what queries are multiplied by
    write: ir.Value | None  # int64 (rows,): where the first fed token stands in a cache
    key_block: ir.Value | None = None  # int32 (rows, S), and
    reach: ir.Value | None = None  # int32 (rows, Q): `visible` as attention over codes takes it


def visibility(
    g: Builder,
    spec: Spec,
    ids: ir.Value,
    key_mask: ir.Value,
    start: ir.Value | None,
    causal: ir.Value | None,
) -> Visibility:
    """For ids (rows, Q) and key_mask (rows, S); `start` int64 (1,) is their place in a cache.

    `causal` bool (1,): no position sees what stands behind it; for models that commit causally.
    """
    write = None
    if start is not None:
        write = g.op("Expand", start, g.op("Shape", ids, start=0, end=1))
    if spec.positions == "absolute":
        positions = g.op("Expand", _fed(g, ids, start), g.op("Shape", ids))
    else:
        positions = _at_fed(g, _counted(g, key_mask), ids, start)
    scale = _query_scale(g, spec, positions)
    shown = g.op("Unsqueeze", key_mask, g.ints([1, 2]))
    codes = write is not None and any(block.keeps_codes for block in g.blocks)
    if spec.attention == "full":
        everywhere = _to_queries(g, shown, ids)
        reaches = _reaches(g, key_mask, None, _no_block(g, ids)) if codes else ()
        return Visibility(positions, everywhere, key_mask, scale, write, *reaches)
    assert spec.block_length is not None
    blocks = counted = _counted(g, key_mask)
    if causal is None:
        blocks = g.op("Div", counted, g.ints([spec.block_length]))
    fed = _at_fed(g, blocks, ids, start)
    own = g.op("Unsqueeze", fed, g.ints([1, 3]))
    reached = g.op("LessOrEqual", g.op("Unsqueeze", blocks, g.ints([1, 2])), own)
    if causal is not None:
        filled = g.op("And", _last_block(g, spec, counted, ids, start), g.op("Not", causal))
        reached = g.op("Or", reached, g.op("Unsqueeze", filled, g.ints([1, 3])))
        fed = g.op("Where", filled, g.ints([HIDDEN - 1]), fed)
    common = g.op("And", key_mask, g.op("Equal", blocks, g.ints([0])))
    reaches = _reaches(g, key_mask, blocks, fed) if codes else ()
    visible = g.op("And", reached, shown)
    return Visibility(positions, visible, common, scale, write, *reaches)


def _reaches(
    g: Builder, key_mask: ir.Value, blocks: ir.Value | None, fed: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The block of each key (rows, S), and that up to which queries (rows, Q) see, int32."""
    blocks = g.ints([0]) if blocks is None else blocks
    of_keys = g.op("Where", key_mask, blocks, g.ints([HIDDEN]))
    return g.cast(of_keys, INT32), g.cast(fed, INT32)


def _no_block(g: Builder, ids: ir.Value) -> ir.Value:
    """Zeros like ids (rows, Q)."""
    return g.op("Mul", ids, g.ints([0]))


def shadow_visibility(g: Builder, spec: Spec, key_mask: ir.Value, shadow: ir.Value) -> Visibility:
    """For a canvas with key_mask (rows, S) and its shadow at int64 (rows, R), behind it.

    The canvas sees itself, the shadow all but the token that it stands for (runtime/shadow.py).
    """
    at = g.op("Max", shadow, g.ints([0]))
    steps = _fed(g, key_mask, None)
    positions = g.op("Expand", steps, g.op("Shape", key_mask))
    if spec.positions != "absolute":
        positions = _counted(g, key_mask)
    positions = g.op("Concat", positions, g.op("GatherElements", positions, at, axis=1), axis=1)
    there = g.op("GreaterOrEqual", shadow, g.ints([0]))
    common = g.op("Concat", key_mask, g.op("And", there, g.op("Not", there)), axis=1)
    canvas = _to_queries(g, g.op("Unsqueeze", common, g.ints([1, 2])), key_mask)
    own = g.op("Equal", g.op("Unsqueeze", shadow, g.ints([2])), steps)  # (rows, R, S)
    tokens = g.op("And", g.op("Unsqueeze", key_mask, g.ints([1])), g.op("Not", own))
    others = _to_queries(g, g.op("Unsqueeze", there, g.ints([1, 2])), shadow)
    seen = g.op("Concat", g.op("Unsqueeze", tokens, g.ints([1])), others, axis=3)
    visible = g.op("Concat", canvas, seen, axis=2)
    return Visibility(positions, visible, common, _query_scale(g, spec, positions), None)


def _last_block(
    g: Builder, spec: Spec, counted: ir.Value, ids: ir.Value, start: ir.Value | None
) -> ir.Value:
    """Which fed tokens (rows, Q) stand in the last block that is shown."""
    assert spec.block_length is not None
    last = g.op("ReduceMax", counted, g.ints([1]), keepdims=1)
    before = g.op("Sub", last, g.ints([spec.block_length]))
    return g.op("Greater", _at_fed(g, counted, ids, start), before)


def _query_scale(g: Builder, spec: Spec, positions: ir.Value) -> ir.Value | None:
    """None also where no canvas is long enough for a scale other than 1."""
    longest = g.tensors["cos"].shape.numpy()[0]
    if spec.query_scale is None or longest <= spec.query_scale.length:
        return None
    steps = g.cast(g.op("Div", positions, g.ints([spec.query_scale.length])), FLOAT)
    grown = g.op("Log", g.op("Add", steps, g.floats([1.0])))
    scale = g.op("Add", g.op("Mul", grown, g.floats([spec.query_scale.beta])), g.floats([1.0]))
    return g.cast(g.op("Unsqueeze", scale, g.ints([2])), g.compute)


def _fed(g: Builder, ids: ir.Value, start: ir.Value | None) -> ir.Value:
    """Positions (Q,) of the fed tokens."""
    length = g.op("Squeeze", g.op("Shape", ids, start=1, end=2))
    steps = g.op("Range", g.int_scalar(0), length, g.int_scalar(1))
    return steps if start is None else g.op("Add", steps, start)


def _counted(g: Builder, key_mask: ir.Value) -> ir.Value:
    """How many positions before each are shown (rows, S)."""
    kind = FLOAT if g.rules.counts_in_floats else INT64  # floats are exact up to 2^24
    count = g.op("CumSum", g.cast(key_mask, kind), g.int_scalar(1))
    count = g.cast(count, INT64) if kind == FLOAT else count
    return g.op("Max", g.op("Sub", count, g.ints([1])), g.ints([0]))


def _at_fed(g: Builder, x: ir.Value, ids: ir.Value, start: ir.Value | None) -> ir.Value:
    """x (rows, S) at the fed positions (rows, Q)."""
    return x if start is None else g.op("Gather", x, _fed(g, ids, start), axis=1)


def _to_queries(g: Builder, visible: ir.Value, ids: ir.Value) -> ir.Value:
    """(rows, 1, 1, S) for each query: ONNX Runtime does not broadcast masks of attention.

    By an And with what is always true: of an Expand TensorRT for RTX 1.7.1 makes an engine that it
    refuses itself, where rows are fixed and queries are not.
    """
    queries = g.op("Unsqueeze", _fed(g, ids, None), g.ints([0, 1, 3]))
    return g.op("And", visible, g.op("GreaterOrEqual", queries, g.int_scalar(0)))
