"""The second half of a block in the graph: a gated MLP, or experts that share the tokens out.

Every expert computes its own tokens alone. The (token, expert) pairs are sorted by expert and split
into runs, one an expert, some of them empty; afterwards they are sorted back and summed a token. A
run per expert, and not a gather and a scatter, keeps sums in one order and the graph small.
"""

import onnx_ir as ir

from exporter.experts import LEAST_SUM
from exporter.families import Experts, Spec
from exporter.graph_builder import FLOAT, INT64, Builder
from exporter.linear_graph import enter, gated, leave
from exporter.linear_groups import MLP, SHARED_EXPERT, expert
from passes.base import LinearGroup

LEAST_MERIT = -1e30  # of an expert outside of the best groups


def mlp(g: Builder, spec: Spec, index: int, x: ir.Value) -> ir.Value:
    """What the MLP of block `index` makes of normed hidden states x (rows, S, D)."""
    experts = spec.experts
    if experts is None or not experts.blocks[index]:
        return _gated(g, index, MLP, x)
    y = g.op("Reshape", _routed(g, experts, index, x), g.op("Shape", x))
    return g.op("Add", y, _gated(g, index, SHARED_EXPERT, x)) if experts.shared_width else y


def _gated(
    g: Builder, index: int, groups: tuple[LinearGroup, LinearGroup], x: ir.Value
) -> ir.Value:
    """down(silu(gate(x)) · up(x))."""
    into, out_of = groups
    y = gated(g, index, into, enter(g, index, into, x))
    return leave(g, index, out_of, enter(g, index, out_of, y))[0]


def _routed(g: Builder, experts: Experts, index: int, x: ir.Value) -> ir.Value:
    """The weighed sum (T, D) of the outputs of each token's experts."""
    width = g.tensors[f"{index}.router"].shape.numpy()[0]
    flat = g.op("Reshape", x, g.ints([-1, width]))
    chosen, weights = _route(g, experts, index, flat)
    pairs = g.op("Reshape", chosen, g.ints([-1]))  # (T · per token,) the expert of each pair
    order, places = _sort(g, experts, pairs)
    tokens = g.op("Div", order, g.ints([experts.per_token]))
    sorted_x = g.op("Unsqueeze", g.op("Gather", flat, tokens, axis=0), g.ints([0]))
    counts = _counts(g, experts, pairs)
    runs = g.ops("Split", experts.count, sorted_x, counts, axis=1)
    outputs = [_gated(g, index, expert(n), run) for n, run in enumerate(runs)]
    joined = g.op("Reshape", g.op("Concat", *outputs, axis=1), g.ints([-1, width]))
    by_token = g.op("Gather", joined, places, axis=0)
    by_token = g.op("Reshape", by_token, g.ints([-1, experts.per_token, width]))
    weights = g.op("Unsqueeze", weights, g.ints([2]))
    return g.op("ReduceSum", g.op("Mul", by_token, g.cast(weights, g.compute)), g.ints([1]),
                keepdims=0)  # fmt: skip


def _route(g: Builder, experts: Experts, index: int, flat: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The experts of each token and their weights in fp32, (T, per token): see experts.py."""
    logits = g.op("MatMul", g.cast(flat, FLOAT), g.weight(f"{index}.router"))
    scores = merit = (
        g.op("Softmax", logits, axis=-1) if experts.score == "softmax" else g.op("Sigmoid", logits)
    )
    if experts.selection_bias:
        merit = g.op("Add", scores, g.weight(f"{index}.expert_bias"))
    if experts.top_groups < experts.groups:
        merit = _best_groups(g, experts, merit)
    _, chosen = g.ops("TopK", 2, merit, g.ints([experts.per_token]), axis=-1)
    weights = g.op("GatherElements", scores, chosen, axis=1)
    if experts.renormalize:
        total = g.op("ReduceSum", weights, g.ints([1]), keepdims=1)
        weights = g.op("Div", weights, g.op("Add", total, g.floats([LEAST_SUM])))
    return chosen, g.op("Mul", weights, g.floats([experts.scale]))


def _best_groups(g: Builder, experts: Experts, merit: ir.Value) -> ir.Value:
    """merit (T, count), LEAST_MERIT outside of the best groups of each token."""
    size = experts.count // experts.groups
    by_group = g.op("Reshape", merit, g.ints([-1, experts.groups, size]))
    two, _ = g.ops("TopK", 2, by_group, g.ints([min(2, size)]), axis=-1)
    both = g.op("ReduceSum", two, g.ints([2]), keepdims=0)
    _, best = g.ops("TopK", 2, both, g.ints([experts.top_groups]), axis=-1)
    none = g.op("Mul", both, g.floats([0.0]))
    kept = g.op("ScatterElements", none, best, _ones_like(g, best), axis=1)
    kept = g.op("Unsqueeze", g.cast(kept, ir.DataType.BOOL), g.ints([2]))
    shown = g.op("Where", kept, by_group, g.floats([LEAST_MERIT]))
    return g.op("Reshape", shown, g.ints([-1, experts.count]))


def _ones_like(g: Builder, x: ir.Value) -> ir.Value:
    return g.op("Expand", g.floats([1.0]), g.op("Shape", x))


def _sort(g: Builder, experts: Experts, pairs: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The order (n,) that sorts pairs (n,) by expert, and the place of each in that order.

    By counting: a pair stands behind those of earlier experts, and earlier ones of its own.
    """
    if not g.rules.sorts_by_counting:
        order = _argsort(g, pairs)
        return order, _argsort(g, order)
    own = g.cast(_belongs(g, experts, pairs), FLOAT)  # exact up to 2^24
    before = g.op("Sub", g.op("CumSum", own, g.int_scalar(0)), own)
    counts = g.op("ReduceSum", own, g.ints([0]), keepdims=0)
    first = g.op("Sub", g.op("CumSum", counts, g.int_scalar(0)), counts)
    there = g.op("Mul", own, g.op("Add", before, first))
    places = g.cast(g.op("ReduceSum", there, g.ints([1]), keepdims=0), INT64)
    count = g.op("Squeeze", g.op("Shape", places))
    steps = g.op("Range", g.int_scalar(0), count, g.int_scalar(1))
    return g.op("ScatterElements", steps, places, steps, axis=0), places


def _argsort(g: Builder, x: ir.Value) -> ir.Value:
    """The order (n,) that sorts x (n,); equal ones keep theirs, as TopK has it."""
    return g.ops("TopK", 2, x, g.op("Shape", x), axis=0, largest=0, sorted=1)[1]


def _counts(g: Builder, experts: Experts, pairs: ir.Value) -> ir.Value:
    """How many of the pairs (n,) each expert (count,) has."""
    own = g.cast(_belongs(g, experts, pairs), INT64)
    return g.op("ReduceSum", own, g.ints([0]), keepdims=0)


def _belongs(g: Builder, experts: Experts, pairs: ir.Value) -> ir.Value:
    """Which expert each of the pairs (n,) belongs to: bool (n, count)."""
    numbers = g.table("experts", list(range(experts.count)))
    return g.op("Equal", g.op("Unsqueeze", pairs, g.ints([1])), numbers)
