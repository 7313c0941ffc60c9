"""Attention over codes in a cache (op.py) in standard operators."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ort_ops.cached_attention.op import (
    INPUTS,
    LEAST_SCALE,
    NEVER,
    TURNS,
    CachedForm,
    operator_name,
)
from ort_ops.function_body import Body
from ort_ops.kv_update.op import written

FLOAT, INT8 = ir.DataType.FLOAT, ir.DataType.INT8


def function_body(form: CachedForm, rotary: bool = False, body: Body | None = None) -> ir.Function:
    """The operator for nodes with the attributes `form`, in the body's opset."""
    body = body or Body()
    names = (*INPUTS, *TURNS) if rotary else INPUTS
    outputs = formula(body, form, {name: body.input(name) for name in names})
    kinds = dict.fromkeys(vars(form), ir.AttributeType.INT)
    return body.function(operator_name(form, rotary), outputs, kinds, activations=False)


def formula(body: Body, form: CachedForm, x: Mapping[str, ir.Value]) -> list[ir.Value]:
    """The four outputs in nodes of `body`, of inputs by name.

    Whole numbers are multiplied as fp32, which adds them exactly below 2^24: products of queries
    and keys always, of probabilities and values over up to 258 keys.
    """
    k, k_scales, v = write(body, form, x)
    seen = body.op(
        "LessOrEqual",
        body.op("Unsqueeze", x["key_block"], body.ints(1)),
        body.op("Unsqueeze", x["reach"], body.ints(2)),
    )  # (B, Q, C)
    scores = _scores(body, form, x, k, k_scales)
    scores = body.op("Where", body.op("Unsqueeze", seen, body.ints(1, 2)), scores,
                     body.number(NEVER))  # fmt: skip
    most = body.op("ReduceMax", scores, body.ints(-1), keepdims=1)
    e = body.op("Exp", body.op("Sub", scores, most))
    if form.v_bits == 16:
        y = _mean(body, e, _finite(body, body.widened(v), seen))
    else:
        p = body.op("Round", body.op("Mul", e, body.number(float(form.p_top))))
        scale = _channels(body, form, x["v_scale"])
        y = _mean(body, p, _value_codes(body, form, x, v))
        y = body.op("Mul", y, body.op("Unsqueeze", scale, body.ints(1)))
    return [body.rounded(_joined(body, y)), k, k_scales, v]


def write(
    body: Body, form: CachedForm, x: Mapping[str, ir.Value]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The caches of keys, their scales, and values, with what is fed in its places."""
    k = _turned(body, _apart(body, x["k"], form.kv_heads), x)
    k = body.op("Sub", _heads_first(body, k), _channels(body, form, x["k_mean"]))
    scales = body.rounded(_scale(body, k, form.k_top))
    codes = body.op("Round", body.op("Div", k, body.widened(scales)))
    top = body.number(float(form.k_top))
    codes = body.op("Clip", codes, body.op("Neg", top), top)
    if form.k_bits == 4:
        codes = _packed(body, body.op("Add", codes, body.number(8.0)))
    codes = _cast(body, codes, INT8)
    v = _heads_first(body, _apart(body, x["v"], form.kv_heads))
    if form.v_bits == 16:
        values = body.rounded(v)
    else:
        scale, zero = (_channels(body, form, x[name]) for name in ("v_scale", "v_zero"))
        whole = body.op("Add", body.op("Round", body.op("Div", v, scale)), zero)
        whole = body.op("Clip", whole, body.number(0.0), body.number(float(form.v_top)))
        eight = form.v_bits == 8
        whole = body.op("Sub", whole, body.number(128.0)) if eight else _packed(body, whole)
        values = _cast(body, whole, INT8)
    fresh = {"k_cache": codes, "k_scales": scales, "v_cache": values}
    k, scales, v = (written(body, x[name], new, x["start"]) for name, new in fresh.items())
    return k, scales, v


def _scores(
    body: Body, form: CachedForm, x: Mapping[str, ir.Value], k: ir.Value, k_scales: ir.Value
) -> ir.Value:
    """(B, G, H / G, Q, C): sums of whole numbers first, then their scales."""
    q = _turned(body, _apart(body, x["q"], form.heads), x)
    q = _heads_first(body, q)
    q_scales = _scale(body, q, form.q_top)
    codes = body.op("Round", body.op("Div", q, q_scales))
    grouped = body.ints(0, form.kv_heads, form.heads // form.kv_heads, -1)
    width = body.op("Shape", q, start=3)
    codes = body.op("Reshape", codes, body.op("Concat", grouped, width, axis=0))
    root = body.op("Sqrt", _cast(body, width, FLOAT))
    q_scales = body.op("Div", q_scales, root)
    q_scales = body.op("Reshape", q_scales, body.op("Concat", grouped, body.ints(1), axis=0))
    keys = _key_codes(body, form, k)
    keys, k_scales = (
        body.op(
            "Unsqueeze",
            body.op("Transpose", value, perm=ir.AttrInt64s("perm", [0, 1, 3, 2])),
            body.ints(2),
        )
        for value in (keys, body.widened(k_scales))
    )
    scores = body.op("Mul", body.op("MatMul", codes, keys), k_scales)
    return body.op("Mul", scores, q_scales)


def read(
    body: Body, form: CachedForm, x: Mapping[str, ir.Value], k: ir.Value, k_scales: ir.Value,
    v: ir.Value,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """What caches of codes stand for: keys, without `k_mean`, and values, fp32 (B, G, C, K).

    Rounding them anew gives the same codes.
    """
    keys = body.op("Mul", _key_codes(body, form, k), body.widened(k_scales))
    scale = _channels(body, form, x["v_scale"])
    return keys, body.op("Mul", _value_codes(body, form, x, v), scale)


def _key_codes(body: Body, form: CachedForm, k: ir.Value) -> ir.Value:
    if form.k_bits == 4:
        return body.op("Sub", _unpacked(body, k), body.number(8.0))
    return _cast(body, k, FLOAT)


def _value_codes(body: Body, form: CachedForm, x: Mapping[str, ir.Value], v: ir.Value) -> ir.Value:
    """Codes less that of the value 0."""
    zero = _channels(body, form, x["v_zero"])
    if form.v_bits == 4:
        return body.op("Sub", _unpacked(body, v), zero)
    return body.op("Sub", _cast(body, v, FLOAT), body.op("Sub", zero, body.number(128.0)))


def _finite(body: Body, v: ir.Value, seen: ir.Value) -> ir.Value:
    """Values (B, G, C, K), those that nobody sees replaced where they are no numbers."""
    none = body.op("Mul", v, body.number(0.0))  # not a number where v is none, or infinite
    broken = body.op("Not", body.op("Equal", none, body.number(0.0)))
    shown = body.op("ReduceMax", _cast(body, seen, FLOAT), body.ints(1), keepdims=0)
    hidden = body.op("Less", shown, body.number(0.5))
    hidden = body.op("Unsqueeze", hidden, body.ints(1, 3))
    return body.op("Where", body.op("And", hidden, broken), body.number(0.0), v)


def _mean(body: Body, weights: ir.Value, v: ir.Value) -> ir.Value:
    """The mean of v (B, G, C, K) by weights (B, G, H / G, Q, C)."""
    total = body.op("ReduceSum", weights, body.ints(-1), keepdims=1)
    whole = body.op("MatMul", weights, body.op("Unsqueeze", v, body.ints(2)))
    return body.op("Div", whole, total)


def _joined(body: Body, y: ir.Value) -> ir.Value:
    """y (B, G, H / G, Q, K) as (B, Q, H · K)."""
    y = body.op("Transpose", y, perm=ir.AttrInt64s("perm", [0, 3, 1, 2, 4]))
    return body.op("Reshape", y, body.ints(0, 0, -1))


def _apart(body: Body, x: ir.Value, heads: int) -> ir.Value:
    """x (B, Q, heads · K) of activations as fp32 (B, Q, heads, K)."""
    return body.op("Reshape", body.widened(x), body.ints(0, 0, heads, -1))


def _heads_first(body: Body, x: ir.Value) -> ir.Value:
    return body.op("Transpose", x, perm=ir.AttrInt64s("perm", [0, 2, 1, 3]))


def _channels(body: Body, form: CachedForm, x: ir.Value) -> ir.Value:
    """A number a channel, of any shape, as fp32 (G, 1, K)."""
    return body.op("Reshape", body.widened(x), body.ints(form.kv_heads, 1, -1))


def _turned(body: Body, y: ir.Value, x: Mapping[str, ir.Value]) -> ir.Value:
    """y (B, Q, heads, K) with its positions."""
    if "cos" not in x:
        return y
    cos, sin = (body.op("Unsqueeze", body.widened(x[name]), body.ints(2)) for name in TURNS)
    half = body.op("Shape", cos, start=3)
    both, last = body.op("Add", half, half), body.ints(-1)
    end = body.op("Shape", y, start=3)
    low, high, rest = (
        body.op("Slice", y, start, stop, last)
        for start, stop in ((body.ints(0), half), (half, both), (both, end))
    )
    turned = [
        body.op("Sub", body.op("Mul", low, cos), body.op("Mul", high, sin)),
        body.op("Add", body.op("Mul", high, cos), body.op("Mul", low, sin)),
    ]
    return body.op("Concat", *turned, rest, axis=-1)


def _scale(body: Body, x: ir.Value, top: int) -> ir.Value:
    """The scale (…, 1) on which the largest of each vector of x (…, K) is `top`."""
    largest = body.op("ReduceMax", body.op("Abs", x), body.ints(-1), keepdims=1)
    scale = body.op("Mul", largest, body.number(float(np.float32(1 / top))))
    return body.op("Max", scale, body.number(LEAST_SCALE))


def _packed(body: Body, codes: ir.Value) -> ir.Value:
    """Codes (…, K) of 0 … 15 as whole numbers (…, K / 2) of -128 … 127."""
    half = body.op("Div", body.op("Shape", codes, start=3), body.ints(2))
    low = body.op("Slice", codes, body.ints(0), half, body.ints(-1))
    high = body.op("Slice", codes, half, body.op("Shape", codes, start=3), body.ints(-1))
    signed = body.op("Greater", high, body.number(7.5))
    high = body.op("Where", signed, body.op("Sub", high, body.number(16.0)), high)
    return body.op("Add", low, body.op("Mul", high, body.number(16.0)))


def _unpacked(body: Body, pairs: ir.Value) -> ir.Value:
    """Codes (…, K) of 0 … 15 of bytes (…, K / 2), as fp32."""
    whole = _cast(body, pairs, FLOAT)
    high = body.op("Floor", body.op("Mul", whole, body.number(1 / 16)))
    low = body.op("Sub", whole, body.op("Mul", high, body.number(16.0)))
    signed = body.op("Less", high, body.number(-0.5))
    high = body.op("Where", signed, body.op("Add", high, body.number(16.0)), high)
    return body.op("Concat", low, high, axis=-1)


def _cast(body: Body, x: ir.Value, to: ir.DataType) -> ir.Value:
    return body.op("Cast", x, to=int(to))
