"""Builds the portable ONNX graphs: standard operators only, opset 24.

One body for all graphs of a bundle; they differ in guidance and in what they return. Weights are
external tensors of one shared file, so a graph file holds the structure alone. The contract
(inputs, outputs, shapes) stands in docs/architecture.md.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_kind import GraphKind
from exporter.weights_file import Stored

OPSET = 24
IR_VERSION = 11
NEVER = -1e30  # logit of the position that the second best is searched without
TOP_K = 64

FLOAT, HALF, INT64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64


def build_graph(spec: Spec, stored: Stored, compute: ir.DataType, kind: GraphKind) -> ir.Model:
    """The graph `kind` over the `stored` weights (see lower.py), computing in `compute`."""
    assert spec.attention == "full"
    g = _Builder(stored, compute, kind.name)
    ids = g.input("input_ids", INT64, ["rows", "S"])
    key_mask = g.input("key_mask", ir.DataType.BOOL, ["rows", "S"])
    window = g.input("window", INT64, ["W"])

    hidden = _embed(g, ids)
    positions, visible = _positions(g, spec, ids, key_mask), _visible(g, ids, key_mask)
    for index in range(spec.layers):
        hidden = _block(g, spec, str(index), hidden, positions, visible)
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


def _embed(g: "_Builder", ids: ir.Value) -> ir.Value:
    rows = g.op("Gather", g.weight("embed"), ids, axis=0)
    if "embed.scale" not in g.tensors:
        return g.cast(rows, g.compute)
    scales = g.op("Gather", g.weight("embed.scale"), ids, axis=0)
    return g.op("Mul", g.cast(rows, g.compute), g.cast(scales, g.compute))


def _positions(g: "_Builder", spec: Spec, ids: ir.Value, key_mask: ir.Value) -> ir.Value:
    """Position ids (rows, S)."""
    if spec.positions == "skip-padding":
        count = g.op("CumSum", g.cast(key_mask, INT64), g.int_scalar(1))
        return g.op("Max", g.op("Sub", count, g.ints([1])), g.ints([0]))
    shape = g.op("Shape", ids)
    length = g.op("Squeeze", g.op("Slice", shape, g.ints([1]), g.ints([2])))
    steps = g.op("Range", g.int_scalar(0), length, g.int_scalar(1))
    return g.op("Expand", steps, shape)


def _visible(g: "_Builder", ids: ir.Value, key_mask: ir.Value) -> ir.Value:
    """Who sees whom, bool (rows, 1, S, S): every key that is not padding."""
    rows = g.op("Shape", ids, start=0, end=1)
    length = g.op("Shape", ids, start=1, end=2)
    shape = g.op("Concat", rows, g.ints([1]), length, length, axis=0)
    return g.op("Expand", g.op("Unsqueeze", key_mask, g.ints([1, 2])), shape)


def _block(
    g: "_Builder", spec: Spec, index: str, hidden: ir.Value, positions: ir.Value, visible: ir.Value
) -> ir.Value:
    x = g.rms_norm(hidden, f"{index}.attn_norm", spec.norm_eps)
    q = _heads(g, spec, index, "q", spec.heads, x, positions)
    k = _heads(g, spec, index, "k", spec.kv_heads, x, positions)
    v = g.linear(x, f"{index}.v", bias=spec.qkv_bias)
    x = g.op("Attention", q, k, v, visible, is_causal=0, q_num_heads=spec.heads,
             kv_num_heads=spec.kv_heads)  # fmt: skip
    hidden = g.op("Add", hidden, g.linear(x, f"{index}.o"))
    x = g.rms_norm(hidden, f"{index}.mlp_norm", spec.norm_eps)
    gate = g.linear(x, f"{index}.gate")
    x = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), g.linear(x, f"{index}.up"))
    return g.op("Add", hidden, g.linear(x, f"{index}.down"))


def _heads(
    g: "_Builder", spec: Spec, index: str, name: str, heads: int, x: ir.Value, positions: ir.Value
) -> ir.Value:
    """Queries or keys with the rotary embedding, (rows, S, heads · K)."""
    y = g.linear(x, f"{index}.{name}", bias=spec.qkv_bias)
    if spec.qk_norm:
        y = g.op("Reshape", y, g.ints([0, 0, heads, spec.head_dim]))
        y = g.rms_norm(y, f"{index}.{name}_norm", spec.norm_eps)
        y = g.op("Reshape", y, g.ints([0, 0, heads * spec.head_dim]))
    return g.op("RotaryEmbedding", y, g.weight("cos"), g.weight("sin"), positions,
                num_heads=heads, interleaved=0)  # fmt: skip


def _head(g: "_Builder", spec: Spec, rows: ir.Value) -> ir.Value:
    """Logits in fp32 of hidden rows (…, D)."""
    return g.cast(g.linear(g.rms_norm(rows, "final_norm", spec.norm_eps), "head"), FLOAT)


def _guide(g: "_Builder", logits: ir.Value) -> ir.Value:
    """u + (scale + 1) · (c − u) of the conditional rows c and the unconditional rows u."""
    scale = g.input("cfg_scale", FLOAT, [1])
    c, u = g.ops("Split", 2, logits, axis=0, num_outputs=2)
    return g.op("Add", u, g.op("Mul", g.op("Add", scale, g.floats([1])), g.op("Sub", c, u)))


def _reduce(g: "_Builder", spec: Spec, logits: ir.Value, kind: GraphKind) -> None:
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


class _Builder:
    """Appends nodes to one graph; the only mutable thing while a graph is made."""

    def __init__(self, stored: Stored, compute: ir.DataType, name: str) -> None:
        self.tensors, self.groups, self.compute = stored.tensors, stored.groups, compute
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET})
        self.named: dict[str, ir.Value] = {}  # what becomes an output
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(self, name: str) -> None:
        kinds = {"id1": INT64, "topk_ids": INT64}
        tails: dict[str, list[int | str]] = {
            "topk_ids": ["B", "W", "K"],
            "topk_logits": ["B", "W", "K"],
            "logits": ["rows", "S", "V"],
        }
        value = self.named[name]
        value.name, value.type = name, ir.TensorType(kinds.get(name, FLOAT))
        value.shape = ir.Shape(tails.get(name, ["B", "W"]))
        self.graph.outputs.append(value)

    def ops(
        self, kind: str, count: int, *inputs: ir.Value, **attributes: int | float
    ) -> list[ir.Value]:
        node = ir.node(kind, list(inputs), attributes=attributes, num_outputs=count)
        self.graph.append(node)
        return list(node.outputs)

    def op(self, kind: str, *inputs: ir.Value, **attributes: int | float) -> ir.Value:
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def cast(self, x: ir.Value, to: ir.DataType) -> ir.Value:
        return self.op("Cast", x, to=int(to))

    def weight(self, name: str) -> ir.Value:
        """A tensor of the weights file as initializer, one a graph."""
        return self._initializer(name, self.tensors[name])

    def ints(self, values: list[int]) -> ir.Value:
        return self._constant("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def int_scalar(self, value: int) -> ir.Value:
        return self._constant(f"int_{value}", np.array(value, np.int64))

    def floats(self, values: list[float]) -> ir.Value:
        return self._constant("f" + "_".join(map(str, values)), np.array(values, np.float32))

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        return self._initializer(name, ir.tensor(array, name=name))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self._initializers:
            shape = ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape,
                             const_value=tensor)  # fmt: skip
            self.graph.register_initializer(value)
            self._initializers[name] = value
        return self._initializers[name]

    def rms_norm(self, x: ir.Value, weight: str, eps: float) -> ir.Value:
        """RMSNorm over the last axis; squares are summed in fp32 (stash type 1)."""
        return self.op("RMSNormalization", x, self.weight(weight), axis=-1, epsilon=eps,
                       stash_type=1)  # fmt: skip

    def linear(self, x: ir.Value, name: str, bias: bool = False) -> ir.Value:
        """x · W (+ b). Quantized weights: DequantizeLinear(axis 0, blocks of K) before MatMul."""
        weight = self.weight(name)
        if name in self.groups:
            scales = self.weight(f"{name}.scale")
            if self.compute != HALF:
                scales = self.cast(scales, self.compute)  # folded when the graph is loaded
            weight = self.op("DequantizeLinear", weight, scales, axis=0,
                             block_size=self.groups[name])  # fmt: skip
        y = self.op("MatMul", x, weight)
        return self.op("Add", y, self.weight(f"{name}_bias")) if bias else y
