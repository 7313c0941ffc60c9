"""Builds the portable ONNX graphs: standard operators only, opset 24.

One body for all graphs of a bundle; they differ in guidance and in what they return. Weights are
external tensors of one shared file, so a graph file holds the structure alone. The contract
(inputs, outputs, shapes) stands in docs/architecture.md.
"""

import onnx_ir as ir

from exporter.attention_graph import attention
from exporter.families import Spec
from exporter.graph_builder import FLOAT, INT64, Builder
from exporter.graph_kind import GraphKind
from exporter.linear_graph import enter, leave, linear
from exporter.model import GROUPS
from exporter.weights_file import Stored

IR_VERSION = 11
NEVER = -1e30  # logit of the position that the second best is searched without
TOP_K = 64


def build_graph(spec: Spec, stored: Stored, compute: ir.DataType, kind: GraphKind) -> ir.Model:
    """The graph `kind` over the `stored` weights (see lower.py), computing in `compute`."""
    assert spec.attention == "full"
    g = Builder(stored, compute, kind.name)
    ids = g.input("input_ids", INT64, ["rows", "S"])
    key_mask = g.input("key_mask", ir.DataType.BOOL, ["rows", "S"])
    window = g.input("window", INT64, ["W"])

    hidden = _embed(g, ids)
    positions, visible = _positions(g, spec, ids, key_mask), _visible(g, ids, key_mask)
    for index in range(spec.layers):
        hidden = _block(g, spec, index, hidden, positions, visible)
    if spec.shift:  # row i − 1 predicts position i; position 0 keeps its own row
        window = g.op("Max", g.op("Sub", window, g.ints([1])), g.ints([0]))
    if kind.logits:
        raw = _head(g, spec, hidden)
        logits = g.op("Gather", raw, window, axis=1)
        g.named["logits"] = raw
    else:
        logits = _head(g, spec, g.op("Gather", hidden, window, axis=1))
    if kind.guided:
        logits = _guide(g, logits)
    _reduce(g, spec, logits, kind)
    for name in kind.outputs:
        g.output(name)
    return ir.Model(g.graph, ir_version=IR_VERSION, producer_name="dqexport")


def _embed(g: Builder, ids: ir.Value) -> ir.Value:
    rows = g.op("Gather", g.weight("embed"), ids, axis=0)
    if "embed.scale" not in g.tensors:
        return g.cast(rows, g.compute)
    scales = g.op("Gather", g.weight("embed.scale"), ids, axis=0)
    return g.op("Mul", g.cast(rows, g.compute), g.cast(scales, g.compute))


def _positions(g: Builder, spec: Spec, ids: ir.Value, key_mask: ir.Value) -> ir.Value:
    """Position ids (rows, S)."""
    if spec.positions == "skip-padding":
        count = g.op("CumSum", g.cast(key_mask, INT64), g.int_scalar(1))
        return g.op("Max", g.op("Sub", count, g.ints([1])), g.ints([0]))
    shape = g.op("Shape", ids)
    length = g.op("Squeeze", g.op("Slice", shape, g.ints([1]), g.ints([2])))
    steps = g.op("Range", g.int_scalar(0), length, g.int_scalar(1))
    return g.op("Expand", steps, shape)


def _visible(g: Builder, ids: ir.Value, key_mask: ir.Value) -> ir.Value:
    """Who sees whom, bool (rows, 1, S, S): every key that is not padding."""
    rows = g.op("Shape", ids, start=0, end=1)
    length = g.op("Shape", ids, start=1, end=2)
    shape = g.op("Concat", rows, g.ints([1]), length, length, axis=0)
    return g.op("Expand", g.op("Unsqueeze", key_mask, g.ints([1, 2])), shape)


def _block(
    g: Builder, spec: Spec, index: int, hidden: ir.Value, positions: ir.Value, visible: ir.Value
) -> ir.Value:
    into, out_of, mlp_in, mlp_out = GROUPS
    x = enter(g, index, into, g.rms_norm(hidden, f"{index}.attn_norm", spec.norm_eps))
    q, k, v = leave(g, index, into, x)
    q = _place(g, spec, f"{index}.q", spec.heads, q, positions)
    k = _place(g, spec, f"{index}.k", spec.kv_heads, k, positions)
    x = enter(g, index, out_of, attention(g, spec, index, q, k, v, visible))
    hidden = g.op("Add", hidden, leave(g, index, out_of, x)[0])
    x = enter(g, index, mlp_in, g.rms_norm(hidden, f"{index}.mlp_norm", spec.norm_eps))
    gate, up = leave(g, index, mlp_in, x)
    x = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return g.op("Add", hidden, leave(g, index, mlp_out, enter(g, index, mlp_out, x))[0])


def _place(
    g: Builder, spec: Spec, name: str, heads: int, y: ir.Value, positions: ir.Value
) -> ir.Value:
    """Queries or keys (rows, S, heads · K) with norm and rotary embedding."""
    if spec.qk_norm:
        y = g.op("Reshape", y, g.ints([0, 0, heads, spec.head_dim]))
        y = g.rms_norm(y, f"{name}_norm", spec.norm_eps)
        y = g.op("Reshape", y, g.ints([0, 0, heads * spec.head_dim]))
    return g.op("RotaryEmbedding", y, g.weight("cos"), g.weight("sin"), positions,
                num_heads=heads, interleaved=0)  # fmt: skip


def _head(g: Builder, spec: Spec, rows: ir.Value) -> ir.Value:
    """Logits in fp32 of hidden rows (…, D)."""
    return g.cast(linear(g, "head", g.rms_norm(rows, "final_norm", spec.norm_eps)), FLOAT)


def _guide(g: Builder, logits: ir.Value) -> ir.Value:
    """u + (scale + 1) · (c − u) of the conditional rows c and the unconditional rows u."""
    scale = g.input("cfg_scale", FLOAT, [1])
    c, u = g.ops("Split", 2, logits, axis=0, num_outputs=2)
    return g.op("Add", u, g.op("Mul", g.op("Add", scale, g.floats([1])), g.op("Sub", c, u)))


def _reduce(g: Builder, spec: Spec, logits: ir.Value, kind: GraphKind) -> None:
    """Everything that a decoding rule asks of logits (rows, W, V); formulas in reductions.py."""
    choice = odds = g.weight("suppress")
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
    g.named |= {
        "id1": g.op("Squeeze", id1, last),
        "l1": g.op("Squeeze", l1, last),
        "rest": rest,
    }
    if not kind.sample:
        return
    z = g.op("Add", rest, g.floats([1]))
    slope = g.op("ReduceSum", g.op("Mul", d, e), last, keepdims=0)
    top, top_ids = g.ops("TopK", 2, logits, g.ints([min(TOP_K, spec.vocab_size)]), axis=-1)
    tempered = g.op("Exp", g.op("Div", d, g.input("temperature", FLOAT, [1])))
    g.named |= {
        "l2": g.op("ReduceMax", others, last, keepdims=0),
        "entropy": g.op("Sub", g.op("Log", z), g.op("Div", slope, z)),
        "topk_ids": top_ids,
        "topk_logits": top,
        "rest_t": g.op("ReduceSum", tempered, last, keepdims=0),
    }
