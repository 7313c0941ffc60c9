"""Builds the ONNX graphs: standard operators, opset 24, and where asked for operators of ours.

One body for all graphs of a bundle; they differ in guidance, in what they return, and in whether
keys and values are kept between calls. Weights are external tensors of one shared file, so a graph
file holds the structure alone. The contract (inputs, outputs, shapes) stands in
docs/architecture.md.
"""

import onnx_ir as ir

from exporter.attention_graph import attention
from exporter.cached_attention_graph import turns_inside
from exporter.families import Spec
from exporter.graph_builder import FLOAT, INT64, Builder
from exporter.graph_kind import GraphKind
from exporter.graph_rules import PLAIN, GraphRules
from exporter.linear_graph import enter, leave, linear
from exporter.linear_groups import ATTENTION
from exporter.mlp_graph import mlp
from exporter.operator_use import OperatorUse
from exporter.reductions_graph import add_outputs, reduce
from exporter.visibility_graph import Visibility, shadow_visibility, visibility
from exporter.weights_file import Stored


def build_graph(
    spec: Spec,
    stored: Stored,
    compute: ir.DataType,
    kind: GraphKind,
    kv_bits: int = 16,
    operators: OperatorUse | None = None,
    rules: GraphRules = PLAIN,
) -> ir.Model:
    """The graph `kind` over the `stored` weights (see lower.py), computing in `compute`.

    Cached graphs keep keys and values in `kv_bits`: 16 (as they are computed), 8 or 4. With
    `operators` linears are operators of ours where they can be, each with its function body.
    `rules` are those of the runtime that it is for.
    """
    g = Builder(stored, compute, kind.name, kv_bits, operators, rules)
    fed, seen = ("Q", g.capacity) if kind.cached else ("S", "S")
    ids = g.input("input_ids", INT64, ["rows", fed])
    start = g.input("start", INT64, [1]) if kind.cached else None
    key_mask = g.input("key_mask", ir.DataType.BOOL, ["rows", seen])
    causal = g.input("causal", ir.DataType.BOOL, [1]) if spec.commits_causally else None
    window = g.input("window", INT64, ["W"])
    if start is not None:
        window = g.op("Sub", window, start)

    if kind.shadow:
        shadow = g.input("shadow", INT64, ["rows", "R"])
        ids, masked = _with_shadow(g, spec, ids, shadow)
        hidden, sees = _embed(g, masked), shadow_visibility(g, spec, key_mask, shadow)
    else:
        hidden, sees = _embed(g, ids), visibility(g, spec, ids, key_mask, start, causal)
    for index in range(spec.layers):
        hidden = _block(g, spec, index, hidden, sees)
    rows = window
    if spec.shift:  # row i − 1 predicts position i; position 0 keeps its own row
        rows = g.op("Max", g.op("Sub", window, g.ints([1])), g.ints([0]))
    elif causal is not None:
        rows = g.op("Max", g.op("Sub", window, g.cast(causal, INT64)), g.ints([0]))
    if kind.logits:
        raw = _head(g, spec, hidden)
        logits = g.op("Gather", raw, rows, axis=1)
    else:
        logits = _head(g, spec, g.op("Gather", hidden, rows, axis=1))
    if kind.guided:
        logits = _guide(g, logits)
    found = reduce(g, spec, logits, _held(g, spec, kind, ids, window), kind.sample)
    found["l_unseen"] = found["l_held"]
    add_outputs(g, kind.reductions, found)
    if kind.logits:
        g.output("logits", raw, FLOAT, ["rows", fed, "V"])
    return g.model()


def _with_shadow(
    g: Builder, spec: Spec, ids: ir.Value, shadow: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Ids (rows, S + R): of what stands at all positions, and of what is fed for them."""
    stands = g.op("GatherElements", ids, g.op("Max", shadow, g.ints([0])), axis=1)
    masks = g.op("Expand", g.ints([spec.mask_id]), g.op("Shape", shadow))
    return g.op("Concat", ids, stands, axis=1), g.op("Concat", ids, masks, axis=1)


def _embed(g: Builder, ids: ir.Value) -> ir.Value:
    rows = g.op("Gather", g.weight("embed"), ids, axis=0)
    if "embed.scale" not in g.tensors:
        return g.cast(rows, g.compute)
    scales = g.op("Gather", g.weight("embed.scale"), ids, axis=0)
    return g.op("Mul", g.cast(rows, g.compute), g.cast(scales, g.compute))


def _block(g: Builder, spec: Spec, index: int, hidden: ir.Value, sees: Visibility) -> ir.Value:
    into, out_of = ATTENTION
    x = enter(g, index, into, g.rms_norm(hidden, f"{index}.attn_norm", spec.norm_eps))
    q, k, v = leave(g, index, into, x)
    positions = None if turns_inside(g, spec, index, sees) else sees.positions
    q = _place(g, spec, f"{index}.q", spec.heads, q, positions)
    if sees.query_scale is not None:
        q = g.op("Mul", q, sees.query_scale)
    k = _place(g, spec, f"{index}.k", spec.kv_heads, k, positions)
    x = enter(g, index, out_of, attention(g, spec, index, q, k, v, sees))
    hidden = g.op("Add", hidden, leave(g, index, out_of, x)[0])
    x = g.rms_norm(hidden, f"{index}.mlp_norm", spec.norm_eps)
    return g.op("Add", hidden, mlp(g, spec, index, x))


def _place(
    g: Builder, spec: Spec, name: str, heads: int, y: ir.Value, positions: ir.Value | None
) -> ir.Value:
    """Queries or keys (rows, S, heads · K) with norm and rotary embedding; None: norm alone."""
    if spec.qk_norm:
        y = g.op("Reshape", y, g.ints([0, 0, heads, spec.head_dim]))
        y = g.rms_norm(y, f"{name}_norm", spec.norm_eps)
        y = g.op("Reshape", y, g.ints([0, 0, heads * spec.head_dim]))
    if positions is None:
        return y
    if g.rules.opset < 23:
        return _turn(g, spec, heads, y, positions)
    part = {} if spec.rotary_dim == spec.head_dim else {"rotary_embedding_dim": spec.rotary_dim}
    return g.op("RotaryEmbedding", y, g.weight("cos"), g.weight("sin"), positions,
                num_heads=heads, interleaved=0, **part)  # fmt: skip


def _turn(g: Builder, spec: Spec, heads: int, y: ir.Value, positions: ir.Value) -> ir.Value:
    """RotaryEmbedding by older operators: channel i is turned with channel i + half."""
    cos, sin = (
        g.op("Unsqueeze", g.op("Gather", g.weight(table), positions, axis=0), g.ints([2]))
        for table in ("cos", "sin")
    )
    y, rest = g.op("Reshape", y, g.ints([0, 0, heads, spec.head_dim])), []
    if spec.rotary_dim < spec.head_dim:
        sizes = g.ints([spec.rotary_dim, spec.head_dim - spec.rotary_dim])
        y, *rest = g.ops("Split", 2, y, sizes, axis=-1)
    low, high = g.ops("Split", 2, y, axis=-1, num_outputs=2)
    turned = [
        g.op("Sub", g.op("Mul", low, cos), g.op("Mul", high, sin)),
        g.op("Add", g.op("Mul", low, sin), g.op("Mul", high, cos)),
    ]
    whole = g.op("Concat", *turned, *rest, axis=-1)
    return g.op("Reshape", whole, g.ints([0, 0, heads * spec.head_dim]))


def _head(g: Builder, spec: Spec, rows: ir.Value) -> ir.Value:
    """Logits in fp32 of hidden rows (…, D)."""
    return g.cast(linear(g, "head", g.rms_norm(rows, "final_norm", spec.norm_eps)), FLOAT)


def _guide(g: Builder, logits: ir.Value) -> ir.Value:
    """u + (scale + 1) · (c − u) of the conditional rows c and the unconditional rows u."""
    scale = g.input("cfg_scale", FLOAT, [1])
    c, u = g.ops("Split", 2, logits, axis=0, num_outputs=2)
    return g.op("Add", u, g.op("Mul", g.op("Add", scale, g.floats([1])), g.op("Sub", c, u)))


def _held(g: Builder, spec: Spec, kind: GraphKind, ids: ir.Value, window: ir.Value) -> ir.Value:
    """The ids (B, W) that stand at the window."""
    if (
        kind.cached and spec.shift
    ) or spec.commits_causally:  # it may end behind what is fed: there l_held means nothing
        last = g.op("Sub", g.op("Shape", ids, start=1, end=2), g.ints([1]))
        window = g.op("Min", window, last)
    if kind.guided:
        ids = g.ops("Split", 2, ids, axis=0, num_outputs=2)[0]
    return g.op("Gather", ids, window, axis=1)
