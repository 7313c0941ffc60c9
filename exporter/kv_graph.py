"""Keys and values in the graph that are kept between calls, in buffers of a fixed length."""

import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_builder import Builder
from ort_ops.kv_update.op import NAME, function_body

INT8, UINT8 = ir.DataType.INT8, ir.DataType.UINT8
FLOAT = 16  # bits of a cache that holds what is computed


def keep(g: Builder, spec: Spec, name: str, new: ir.Value, write: ir.Value, bits: int) -> ir.Value:
    """All keys or values (rows, kv heads, C, K) of a block, `new` ones (rows, kv heads, Q, K) at
    the positions from `write` (rows,) on.

    With 8 or 4 bits a vector becomes whole numbers and a scale when it is written.
    """
    if bits == FLOAT:
        return _scattered(g, spec, name, g.compute, spec.head_dim, new, write)
    top = 2 ** (bits - 1) - 1
    scale = g.row_scale(g.op("Abs", new), top)
    if g.rules.codes_by_scales:
        assert bits == 8, "the target refuses others"
        one, zero = g.number(1.0), g.int8_zero()
        codes = g.op("QuantizeLinear", g.op("Div", new, scale), one, zero)
        codes = _scattered(g, spec, name, INT8, spec.head_dim, codes, write)
        whole = g.op("DequantizeLinear", codes, one, zero)
        return g.op("Mul", whole, _scattered(g, spec, f"{name}_scale", g.compute, 1, scale, write))
    codes = g.op("Round", g.op("Div", new, scale))
    if bits == 8:
        codes = _scattered(g, spec, name, INT8, spec.head_dim, g.cast(codes, INT8), write)
        whole = g.cast(codes, g.compute)
    else:
        pairs = _scattered(g, spec, name, UINT8, spec.head_dim // 2, _packed(g, codes), write)
        whole = _unpacked(g, pairs)
    scales = _scattered(g, spec, f"{name}_scale", g.compute, 1, scale, write)
    return g.op("Mul", whole, scales)


def _scattered(
    g: Builder, spec: Spec, name: str, dtype: ir.DataType, width: int, new: ir.Value,
    write: ir.Value,
) -> ir.Value:  # fmt: skip
    """The buffer `name` (rows, kv heads, C, width) with `new` in its place.

    The graph's input `name` and output `<name>_out` are meant to be one buffer: then nothing but
    the new ones is written.
    """
    shape: list[int | str] = ["rows", spec.kv_heads, g.capacity, width]
    cache = g.input(name, dtype, shape)
    native = g.rules.opset >= 24 and width == spec.head_dim and dtype == g.compute
    if g.operators is not None and g.operators.kv_update and not native:
        kept = g.own(NAME, function_body, cache, new, write)
    elif g.rules.opset >= 24:
        kept = g.op("TensorScatter", cache, new, write, axis=-2)
    else:
        kept = g.op("ScatterND", cache, _places(g, spec, new, write), new)
    g.output(f"{name}_out", kept, dtype, shape)
    return kept


def _places(g: Builder, spec: Spec, new: ir.Value, write: ir.Value) -> ir.Value:
    """Where the vectors (rows, kv heads, Q) of `new` belong: (row, head, position) of each."""
    zero, one, last = g.int_scalar(0), g.int_scalar(1), g.ints([-1])
    steps = [
        g.op("Range", zero, g.op("Squeeze", g.op("Shape", new, start=axis, end=axis + 1)), one)
        for axis in (0, 2)
    ]
    row = g.op("Unsqueeze", steps[0], g.ints([1, 2, 3]))
    head = g.op("Unsqueeze", g.table("kv_heads", list(range(spec.kv_heads))), g.ints([0, 2, 3]))
    position = g.op("Add", g.op("Unsqueeze", write, g.ints([1, 2])), steps[1])
    position = g.op("Unsqueeze", position, last)
    shape = g.op("Concat", g.op("Shape", new, start=0, end=3), g.ints([1]), axis=0)
    return g.op("Concat", *(g.op("Expand", x, shape) for x in (row, head, position)), axis=-1)


def _packed(g: Builder, codes: ir.Value) -> ir.Value:
    """Codes (…, K) of -7 … 7 as bytes (…, K / 2): channel i low, channel i + K / 2 high."""
    low, high = g.ops("Split", 2, g.op("Add", codes, g.number(8.0)), axis=-1, num_outputs=2)
    return g.cast(g.op("Add", low, g.op("Mul", high, g.number(16.0))), UINT8)


def _unpacked(g: Builder, pairs: ir.Value) -> ir.Value:
    whole = g.cast(pairs, g.compute)
    high = g.op("Floor", g.op("Mul", whole, g.number(1 / 16)))
    low = g.op("Sub", whole, g.op("Mul", high, g.number(16.0)))
    return g.op("Sub", g.op("Concat", low, high, axis=-1), g.number(8.0))
