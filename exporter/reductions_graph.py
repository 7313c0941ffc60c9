"""Reductions in the graph: what a decoding rule asks of logits, so that these can stay behind."""

import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_builder import FLOAT, INT64, Builder

NEVER = -1e30  # logit of the position that the second best is searched without
TOP_K = 64


def reduce(
    g: Builder, spec: Spec, logits: ir.Value, held: ir.Value, sample: bool
) -> dict[str, ir.Value]:
    """Reductions of logits (B, W, V) by name; formulas in reductions.py.

    `held` (B, W) are the ids that l_held is about. `sample`: not the arg-max and its odds alone.
    """
    choice = odds = g.default("suppress")
    if spec.special_ids:
        ids = g.ints(spec.special_ids)
        bias = g.input("special_bias", FLOAT, [2, len(spec.special_ids)])
        bias = g.op("Add", bias, g.op("Gather", choice, ids, axis=0))  # one may be suppressed too
        choice = g.op("ScatterElements", choice, ids, g.op("Gather", bias, g.int_scalar(0), axis=0))
        odds = g.op("ScatterElements", odds, ids, g.op("Gather", bias, g.int_scalar(1), axis=0))
    logits = g.op("Add", logits, choice)
    last = g.ints([-1])
    id1 = g.op("ArgMax", logits, axis=-1, keepdims=1)  # the lowest index on ties
    l1 = g.op("ReduceMax", logits, last, keepdims=1)
    never = g.op("Expand", g.floats([NEVER]), g.op("Shape", id1))
    others = g.op("ScatterElements", logits, id1, never, axis=-1)
    d = g.op("Add", g.op("Sub", others, l1), odds)
    e = g.op("Exp", d)
    rest = g.op("ReduceSum", e, last, keepdims=0)
    l_held = g.op("GatherElements", logits, g.op("Unsqueeze", held, last), axis=-1)
    found = {
        "id1": g.op("Squeeze", id1, last),
        "l1": g.op("Squeeze", l1, last),
        "rest": rest,
        "l_held": g.op("Squeeze", l_held, last),
    }
    if not sample:
        return found
    z = g.op("Add", rest, g.floats([1]))
    slope = g.op("ReduceSum", g.op("Mul", d, e), last, keepdims=0)
    top, top_ids = g.ops("TopK", 2, logits, g.ints([min(TOP_K, spec.vocab_size)]), axis=-1)
    tempered = g.op("Exp", g.op("Div", d, g.input("temperature", FLOAT, [1])))
    return found | {
        "l2": g.op("ReduceMax", others, last, keepdims=0),
        "entropy": g.op("Sub", g.op("Log", z), g.op("Div", slope, z)),
        "topk_ids": top_ids,
        "topk_logits": top,
        "rest_t": g.op("ReduceSum", tempered, last, keepdims=0),
    }


def add_outputs(g: Builder, names: list[str], found: dict[str, ir.Value]) -> None:
    """Make the reductions `names` outputs of the graph, in this order."""
    for name in names:
        dtype = INT64 if name in ("id1", "topk_ids") else FLOAT
        g.output(name, found[name], dtype, ["B", "W", *["K"] * name.startswith("topk")])
