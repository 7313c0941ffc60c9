"""Attention in the graph: the standard operator, or its parts where operands are rounded."""

import onnx_ir as ir

from exporter.cached_attention_graph import cached_attention
from exporter.families import Spec
from exporter.graph_builder import FLOAT, Builder
from exporter.kv_graph import keep
from exporter.visibility_graph import Visibility
from ort_ops.attention.op import NAME, function_body
from passes.activations.attention import FLOAT as FLOAT_BITS
from passes.activations.attention import AttentionGrid

NEVER = {ir.DataType.FLOAT: -3.4028234663852886e38, ir.DataType.FLOAT16: -65504.0}


def attention(
    g: Builder, spec: Spec, index: int, q: ir.Value, k: ir.Value, v: ir.Value, sees: Visibility
) -> ir.Value:
    """Attention (rows, Q, H · K) of q (rows, Q, H · K), k and v (rows, Q, kv heads · K).

    In cached graphs over all keys and values that are kept, these among them.
    """
    grid = g.blocks[index].attention or AttentionGrid()
    native = g.rules.opset >= 23
    if sees.write is not None and grid.keeps_codes:
        return cached_attention(g, spec, index, grid, q, k, v, sees)
    if sees.write is None and grid.is_float and native and not g.rules.heads_apart:
        return g.op("Attention", q, k, v, sees.visible, is_causal=0, q_num_heads=spec.heads,
                    kv_num_heads=spec.kv_heads)  # fmt: skip
    k, v = _split(g, spec, spec.kv_heads, k), _split(g, spec, spec.kv_heads, v)
    if sees.write is not None:
        bits = FLOAT_BITS if grid.keeps_own else g.kv_bits
        k = keep(g, spec, f"k_{index}", k, sees.write, bits)
        v = keep(g, spec, f"v_{index}", v, sees.write, bits)
    if _has_operator(g, grid):
        return _own_attention(g, spec, index, grid, q, k, v, sees)
    q = _split(g, spec, spec.heads, q)
    if grid.is_float and native:
        out = g.op("Attention", q, k, v, sees.visible, is_causal=0)
    else:
        out = _rounded_attention(g, spec, index, grid, q, k, v, sees)
    return g.op("Reshape", g.op("Transpose", out, perm=[0, 2, 1, 3]), g.ints([0, 0, -1]))


def _has_operator(g: Builder, grid: AttentionGrid) -> bool:
    """Whether `ort_ops/attention` computes on that grid; on a GPU also with float values."""
    use = g.operators
    if use is None or not use.attention or (g.compute != FLOAT and not use.gpu):
        return False
    if FLOAT_BITS in (grid.q_bits, grid.k_bits) or not grid.key_mean:
        return False
    if grid.v_bits == grid.p_bits == FLOAT_BITS:
        return use.gpu
    static = grid.v_scale is not None and grid.p_scale == "row"
    return static and FLOAT_BITS not in (grid.v_bits, grid.p_bits)


def _own_attention(
    g: Builder,
    spec: Spec,
    index: int,
    grid: AttentionGrid,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    sees: Visibility,
) -> ir.Value:
    """The operator of ours for q (rows, Q, H · K) and k, v (rows, kv heads, S, K)."""
    if grid.rotation is not None:
        turn, heads = g.weight(f"{index}.rotation"), g.ints([0, 0, spec.heads, spec.head_dim])
        q = g.op("MatMul", g.op("Reshape", q, heads), turn)
        q, k = g.op("Reshape", q, g.ints([0, 0, -1])), g.op("MatMul", k, turn)
    common = sees.common
    if grid.k_mean is not None:  # then there are no common keys, of which the operator took a mean
        k = g.op("Sub", k, g.weight(f"{index}.k_mean"))
        common = g.op("And", common, g.op("Not", common))
    floats = grid.v_bits == FLOAT_BITS  # values and probabilities have no grid
    if floats:
        shape = g.ints([spec.kv_heads, 1, 1, spec.head_dim])
        scale = zero = g.op("Reshape", g.zeros(spec.kv_heads * spec.head_dim), shape)
    else:
        scale, zero = g.weight(f"{index}.v_scale"), g.weight(f"{index}.v_zero")
    return g.own(
        NAME, function_body, q, k, v, sees.visible, common, scale, zero,
        heads=spec.heads, kv_heads=spec.kv_heads,
        q_top=2 ** (grid.q_bits - 1) - 1, k_top=2 ** (grid.k_bits - 1) - 1,
        v_top=0 if floats else 2**grid.v_bits - 1, p_top=0 if floats else 2**grid.p_bits - 1,
    )  # fmt: skip


def _split(g: Builder, spec: Spec, heads: int, x: ir.Value) -> ir.Value:
    """x (rows, Q, heads · K) as (rows, heads, Q, K)."""
    parts = g.op("Reshape", x, g.ints([0, 0, heads, spec.head_dim]))
    return g.op("Transpose", parts, perm=[0, 2, 1, 3])


def _rounded_attention(
    g: Builder,
    spec: Spec,
    index: int,
    grid: AttentionGrid,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    sees: Visibility,
) -> ir.Value:
    """Attention (rows, H, Q, K) of q (rows, H, Q, K) over k and v (rows, kv heads, S, K) on a grid.

    In between query heads that read one key head stand on an axis of their own.
    """
    shared = spec.heads // spec.kv_heads
    q = g.op("Reshape", q, g.ints([0, spec.kv_heads, shared, -1, spec.head_dim]))
    k, v = g.op("Unsqueeze", k, g.ints([2])), g.op("Unsqueeze", v, g.ints([2]))
    if grid.rotation is not None:
        turn = g.weight(f"{index}.rotation")
        q, k = g.op("MatMul", q, turn), g.op("MatMul", k, turn)
    if grid.k_bits != FLOAT_BITS:
        if grid.k_mean is not None:
            k = g.op("Sub", k, g.op("Unsqueeze", g.weight(f"{index}.k_mean"), g.ints([1])))
        elif grid.key_mean:
            k = g.op("Sub", k, _mean_key(g, k, sees.common))
    q, k = _round_tokens(g, q, grid.q_bits), _round_tokens(g, k, grid.k_bits)
    p = _round_probabilities(g, grid, _probabilities(g, spec, q, k, sees.visible))
    out = g.op("MatMul", p, _round_values(g, grid, index, v))
    return g.op("Reshape", out, g.ints([0, spec.heads, -1, spec.head_dim]))


def _mean_key(g: Builder, k: ir.Value, common: ir.Value) -> ir.Value:
    """The mean (rows, kv heads, 1, 1, K) of the keys that all queries see; `common` (rows, S)."""
    shown = g.op("Unsqueeze", g.cast(common, g.compute), g.ints([1, 2, 4]))  # (rows, 1, 1, S, 1)
    share = g.op("Div", shown, g.op("ReduceSum", shown, g.ints([3]), keepdims=1))
    # shares first: the sum of the keys themselves may be more than fp16 holds
    return g.op("ReduceSum", g.op("Mul", k, share), g.ints([3]), keepdims=1)


def _round_tokens(g: Builder, x: ir.Value, bits: int) -> ir.Value:
    """x (…, K) rounded and back, a scale a vector."""
    if bits == FLOAT_BITS:
        return x
    top = 2 ** (bits - 1) - 1
    scale = g.row_scale(g.op("Abs", x), top)
    return g.op("Mul", g.op("Round", g.op("Div", x, scale)), scale)


def _probabilities(g: Builder, spec: Spec, q: ir.Value, k: ir.Value, visible: ir.Value) -> ir.Value:
    """Softmax outputs (rows, kv heads, shared, S, S)."""
    scaled = g.op("Mul", q, g.number(spec.head_dim**-0.5))
    scores = g.op("MatMul", scaled, g.op("Transpose", k, perm=[0, 1, 2, 4, 3]))
    scores = g.op("Where", g.op("Unsqueeze", visible, g.ints([2])), scores,
                  g.number(NEVER[g.compute]))  # fmt: skip
    return g.op("Softmax", g.cast(scores, FLOAT) if g.compute != FLOAT else scores, axis=-1)


def _round_probabilities(g: Builder, grid: AttentionGrid, p: ir.Value) -> ir.Value:
    """fp32 in, and out as the graph computes."""
    top = g.floats([float(2**grid.p_bits - 1)])
    if grid.p_bits != FLOAT_BITS and grid.p_scale == "static":
        step = g.floats([1 / (2**grid.p_bits - 1)])
        p = g.op("Mul", g.op("Round", g.op("Mul", p, top)), step)
    elif grid.p_bits != FLOAT_BITS:
        share = g.op("Div", p, g.op("ReduceMax", p, g.ints([-1]), keepdims=1))
        codes = g.op("Round", g.op("Mul", share, top))
        p = g.op("Div", codes, g.op("ReduceSum", codes, g.ints([-1]), keepdims=1))
    return g.cast(p, g.compute) if g.compute != FLOAT else p


def _round_values(g: Builder, grid: AttentionGrid, index: int, v: ir.Value) -> ir.Value:
    if grid.v_bits == FLOAT_BITS:
        return v
    if grid.v_scale is None:
        return _round_tokens(g, v, grid.v_bits)
    scale, zero = g.weight(f"{index}.v_scale"), g.weight(f"{index}.v_zero")
    codes = g.op("Add", g.op("Round", g.op("Div", v, scale)), zero)
    codes = g.op("Clip", codes, g.number(0.0), g.number(float(2**grid.v_bits - 1)))
    return g.op("Mul", g.op("Sub", codes, zero), scale)
