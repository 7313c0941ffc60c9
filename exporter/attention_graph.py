"""Attention in the graph: the standard operator, or its parts where operands are rounded."""

import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_builder import FLOAT, Builder
from passes.activations.attention import FLOAT as FLOAT_BITS
from passes.activations.attention import AttentionGrid
from passes.activations.grid import LEAST_SCALE

NEVER = {ir.DataType.FLOAT: -3.4028234663852886e38, ir.DataType.FLOAT16: -65504.0}


def attention(
    g: Builder, spec: Spec, index: int, q: ir.Value, k: ir.Value, v: ir.Value, visible: ir.Value
) -> ir.Value:
    """Attention (rows, S, H · K) of q (rows, S, H · K), k and v (rows, S, kv heads · K).

    `visible` is bool (rows, 1, S, S).
    """
    grid = g.blocks[index].attention
    if grid is None or grid.is_float:
        return g.op("Attention", q, k, v, visible, is_causal=0, q_num_heads=spec.heads,
                    kv_num_heads=spec.kv_heads)  # fmt: skip
    shared = spec.heads // spec.kv_heads  # query heads that read one key head
    q = _heads(g, spec, shared, q)
    k, v = _heads(g, spec, 1, k), _heads(g, spec, 1, v)
    if grid.rotation is not None:
        turn = g.weight(f"{index}.rotation")
        q, k = g.op("MatMul", q, turn), g.op("MatMul", k, turn)
    if grid.k_bits != FLOAT_BITS:
        k = g.op("Sub", k, _mean_key(g, k, visible)) if grid.key_mean else k
    q, k = _round_tokens(g, q, grid.q_bits), _round_tokens(g, k, grid.k_bits)
    p = _round_probabilities(g, grid, _probabilities(g, spec, q, k, visible))
    out = g.op("MatMul", p, _round_values(g, grid, index, v))
    return g.op("Reshape", g.op("Transpose", out, perm=[0, 3, 1, 2, 4]), g.ints([0, 0, -1]))


def _heads(g: Builder, spec: Spec, shared: int, x: ir.Value) -> ir.Value:
    """x (rows, S, heads · K) as (rows, kv heads, shared, S, K)."""
    parts = g.op("Reshape", x, g.ints([0, 0, spec.kv_heads, shared, spec.head_dim]))
    return g.op("Transpose", parts, perm=[0, 2, 3, 1, 4])


def _mean_key(g: Builder, k: ir.Value, visible: ir.Value) -> ir.Value:
    """The mean (rows, kv heads, 1, 1, K) of the keys that the last query sees."""
    last = g.op("Slice", visible, g.ints([-1]), g.ints([2**62]), g.ints([2]))  # (rows, 1, 1, S)
    shown = g.op("Unsqueeze", g.cast(last, g.compute), g.ints([4]))  # (rows, 1, 1, S, 1)
    share = g.op("Div", shown, g.op("ReduceSum", shown, g.ints([3]), keepdims=1))
    # shares first: the sum of the keys themselves may be more than fp16 holds
    return g.op("ReduceSum", g.op("Mul", k, share), g.ints([3]), keepdims=1)


def _round_tokens(g: Builder, x: ir.Value, bits: int) -> ir.Value:
    """x (…, K) rounded and back, a scale a vector."""
    if bits == FLOAT_BITS:
        return x
    top = 2 ** (bits - 1) - 1
    scale = _row_scale(g, g.op("Abs", x), top)
    return g.op("Mul", g.op("Round", g.op("Div", x, scale)), scale)


def _row_scale(g: Builder, x: ir.Value, top: int) -> ir.Value:
    largest = g.op("ReduceMax", x, g.ints([-1]), keepdims=1)
    return g.op("Max", g.op("Mul", largest, g.number(1 / top)), g.number(LEAST_SCALE))


def _probabilities(g: Builder, spec: Spec, q: ir.Value, k: ir.Value, visible: ir.Value) -> ir.Value:
    """Softmax outputs (rows, kv heads, shared, S, S)."""
    scaled = g.op("Mul", q, g.number(spec.head_dim**-0.5))
    scores = g.op("MatMul", scaled, g.op("Transpose", k, perm=[0, 1, 2, 4, 3]))
    scores = g.op("Where", g.op("Unsqueeze", visible, g.ints([2])), scores,
                  g.number(NEVER[g.compute]))  # fmt: skip
    p = g.op("Softmax", g.cast(scores, FLOAT) if g.compute != FLOAT else scores, axis=-1)
    return g.cast(p, g.compute) if g.compute != FLOAT else p


def _round_probabilities(g: Builder, grid: AttentionGrid, p: ir.Value) -> ir.Value:
    if grid.p_bits == FLOAT_BITS:
        return p
    top = 2**grid.p_bits - 1
    if grid.p_scale == "static":
        codes = g.op("Round", g.op("Mul", p, g.number(float(top))))
        return g.op("Mul", codes, g.number(1 / top))
    scale = _row_scale(g, p, top)
    return g.op("Mul", g.op("Round", g.op("Div", p, scale)), scale)


def _round_values(g: Builder, grid: AttentionGrid, index: int, v: ir.Value) -> ir.Value:
    if grid.v_bits == FLOAT_BITS:
        return v
    if grid.v_scale is None:
        return _round_tokens(g, v, grid.v_bits)
    scale, zero = g.weight(f"{index}.v_scale"), g.weight(f"{index}.v_zero")
    codes = g.op("Add", g.op("Round", g.op("Div", v, scale)), zero)
    codes = g.op("Clip", codes, g.number(0.0), g.number(float(2**grid.v_bits - 1)))
    return g.op("Mul", g.op("Sub", codes, zero), scale)
