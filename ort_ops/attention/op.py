"""Attention on quantized operands: contract, numpy reference, and ONNX function body.

`DqxAttention(q, k, v, visible, common, v_scale, v_zero) -> y`, domain `dqexport`, version 1:

* q fp32 (B, Q, H · K), with positions applied; k, v fp32 (B, kv heads, S, K);
* visible bool (B, 1, Q, S): who sees whom; common bool (B, S): keys that every query sees,
  maybe none;
* v_scale > 0, v_zero whole, from 0 to v_top: fp32, kv heads · K of them in this order, any shape
  that broadcasts to (B, kv heads, 1, S, K);
* y fp32 (B, Q, H · K). All that is fp32 here may be fp16 instead.

Attributes: `heads`, `kv_heads`; `q_top`, `k_top` (7 or 127), `v_top`, `p_top` (15 or 255), the
largest codes. Queries and keys are rounded with a scale a vector, keys without the mean of the
common ones, if there are any (SageAttention, arXiv 2410.02367, section 4.2); values on scales of
their channels that all tokens share (IA-AQ of DLLMQuant), to codes between 0 and v_top. Scores s,
scaled by 1 / sqrt(K), become codes c = rint(exp(s − max s) · p_top) of what a query sees, so that
also many small probabilities have some, and y = Σ c (code − zero) / Σ c · v_scale: sums of
integers. A query that sees nothing weighs all keys alike.

With `v_top` and `p_top` 0 values and probabilities stay floats, y = Σ e v / Σ e of e =
exp(s − max s), which kernels may take as halves; v_scale and v_zero mean nothing then.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ort_ops.function_body import Body

NAME = "DqxAttention"
INT = ir.AttributeType.INT
LEAST_SCALE = 2.0**-24
NEVER = -3.4028234663852886e38  # the score of what is not seen

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AttentionTops:
    """The largest codes of queries, keys, values and probabilities; the last two may both be 0."""

    q: int = 127
    k: int = 127
    v: int = 255
    p: int = 255


def reference(
    q: Float32,
    k: Float32,
    v: Float32,
    visible: Bools,
    common: Bools,
    v_scale: Float32,
    v_zero: Float32,
    heads: int,
    tops: AttentionTops,
) -> Float64:
    """y (B, Q, H · K) in float64 from codes that are found in fp32, as kernels find them."""
    rows, kv_heads, _, width = k.shape
    share = np.float32(1) / common.sum(-1, dtype=np.float32).clip(1)
    shown = common[:, None, :, None] * share[:, None, None, None]
    moved = k - (k * shown).sum(2, keepdims=True, dtype=np.float32)
    k_codes, k_scales = _vectors(moved, tops.k)
    by_head = q.reshape(rows, -1, heads, width).transpose(0, 2, 1, 3)
    q_codes, q_scales = _vectors(by_head, tops.q)
    shared = heads // kv_heads
    scores = q_codes @ k_codes.repeat(shared, 1).swapaxes(2, 3)
    scores = scores * k_scales.repeat(shared, 1).swapaxes(2, 3) * q_scales / width**0.5
    scores = np.where(visible, scores, NEVER)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    values = v.astype(np.float64)
    if tops.p:
        p = np.rint(p * tops.p)
        scale, zero = (x.reshape(kv_heads, 1, width) for x in (v_scale, v_zero))
        v_codes = (np.rint(v / scale) + zero).clip(0, tops.v)
        values = (v_codes - zero) * scale.astype(np.float64)
    y: Float64 = p @ values.repeat(shared, 1) / p.sum(-1, keepdims=True)
    return y.transpose(0, 2, 1, 3).reshape(rows, -1, heads * width)


def _vectors(x: Float32, top: int) -> tuple[Float64, Float64]:
    """Codes of x (…, K) and scales (…, 1)."""
    scales = np.abs(x).max(-1, keepdims=True) * np.float32(1 / top)
    scales = np.maximum(scales, np.float32(LEAST_SCALE))
    return np.rint(x / scales).clip(-top - 1, top).astype(np.float64), scales.astype(np.float64)


def function_body(body: Body | None = None) -> ir.Function:
    """The operator in standard operators, as `exporter.attention_graph` writes them."""
    body = body or Body()
    inputs = {
        name: body.input(name) if name in ("visible", "common") else body.floats(name)
        for name in ("q", "k", "v", "visible", "common", "v_scale", "v_zero")
    }
    q, k, v, visible, common, scale, zero = inputs.values()
    heads, kv_heads = (body.op("Unsqueeze", body.attribute(n, INT), body.ints(0))
                       for n in ("heads", "kv_heads"))  # fmt: skip
    width = body.op("Shape", k, start=3)
    apart = body.op("Concat", body.ints(0, 0), heads, width, axis=0)
    q = body.op("Transpose", body.op("Reshape", q, apart), perm=ir.AttrInt64s("perm", [0, 2, 1, 3]))
    shared = body.op("Div", heads, kv_heads)
    grouped = body.op("Concat", body.ints(0), kv_heads, shared, body.ints(-1), width, axis=0)
    q, k, v = body.op("Reshape", q, grouped), _grouped(body, k), _grouped(body, v)
    q = _rounded(body, q, "q_top")
    k = _rounded(body, body.op("Sub", k, _mean_key(body, k, common)), "k_top")
    root = body.op("Sqrt", body.op("Cast", width, to=int(ir.DataType.FLOAT)))
    turned = body.op("Transpose", k, perm=ir.AttrInt64s("perm", [0, 1, 2, 4, 3]))
    scores = body.op("MatMul", body.op("Div", q, root), turned)
    seen = body.op("Unsqueeze", visible, body.ints(2))
    scores = body.op("Where", seen, scores, body.number(NEVER))
    e = body.op("Exp", body.op("Sub", scores, body.op("ReduceMax", scores, body.ints(-1))))
    p = _unless_float(body, "p_top", e, body.op("Round", body.op("Mul", e, _top(body, "p_top"))))
    codes = body.op("Add", body.op("Round", body.op("Div", v, scale)), zero)
    codes = body.op("Clip", codes, body.number(0.0), _top(body, "v_top"))
    on_grid = body.op("Mul", body.op("Sub", codes, zero), scale)
    y = body.op("MatMul", p, _unless_float(body, "v_top", v, on_grid))
    y = body.op("Div", y, body.op("ReduceSum", p, body.ints(-1)))
    y = body.op("Reshape", y, body.op("Concat", body.ints(0), heads, body.ints(-1), width, axis=0))
    y = body.op("Transpose", y, perm=ir.AttrInt64s("perm", [0, 2, 1, 3]))
    y = body.op("Reshape", y, body.ints(0, 0, -1))
    names = ("heads", "kv_heads", "q_top", "k_top", "v_top", "p_top")
    return body.function(NAME, y, dict.fromkeys(names, INT))


def _grouped(body: Body, x: ir.Value) -> ir.Value:
    """(B, kv heads, S, K) with an axis for the query heads that share a key head."""
    return body.op("Unsqueeze", x, body.ints(2))


def _top(body: Body, name: str) -> ir.Value:
    return body.op("Cast", body.attribute(name, INT), to=int(ir.DataType.FLOAT))


def _unless_float(body: Body, top: str, x: ir.Value, on_grid: ir.Value) -> ir.Value:
    """x where its largest code is 0, else what it is on its grid."""
    is_float = body.op("Equal", _top(body, top), body.number(0.0))
    return body.op("Where", is_float, x, on_grid)


def _rounded(body: Body, x: ir.Value, top: str) -> ir.Value:
    """x (…, K) rounded and back, a scale a vector."""
    largest = body.op("ReduceMax", body.op("Abs", x), body.ints(-1), keepdims=1)
    scale = body.op("Mul", largest, body.op("Div", body.number(1.0), _top(body, top)))
    scale = body.op("Max", scale, body.number(LEAST_SCALE))
    return body.op("Mul", body.op("Round", body.op("Div", x, scale)), scale)


def _mean_key(body: Body, k: ir.Value, common: ir.Value) -> ir.Value:
    """The mean (B, kv heads, 1, 1, K) of keys (B, kv heads, 1, S, K); `common` (B, S)."""
    shown = body.op("Cast", common, to=int(ir.DataType.FLOAT))
    shown = body.op("Unsqueeze", shown, body.ints(1, 2, 4))
    count = body.op("ReduceSum", shown, body.ints(3), keepdims=1)
    share = body.op("Div", shown, body.op("Max", count, body.number(1.0)))
    return body.op("ReduceSum", body.op("Mul", k, share), body.ints(3), keepdims=1)
