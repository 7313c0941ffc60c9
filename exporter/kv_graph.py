"""Keys and values in the graph that are kept between calls, in buffers of a fixed length."""

import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_builder import Builder

INT8, UINT8 = ir.DataType.INT8, ir.DataType.UINT8
FLOAT = 16  # bits of a cache that holds what is computed


def keep(g: Builder, spec: Spec, name: str, new: ir.Value, write: ir.Value) -> ir.Value:
    """All keys or values (rows, kv heads, C, K) of a block, `new` ones (rows, kv heads, Q, K) at
    the positions from `write` (rows,) on.

    With 8 or 4 bits a vector becomes whole numbers and a scale when it is written.
    """
    if g.kv_bits == FLOAT:
        return _scattered(g, spec, name, g.compute, spec.head_dim, new, write)
    top = 2 ** (g.kv_bits - 1) - 1
    scale = g.row_scale(g.op("Abs", new), top)
    codes = g.op("Round", g.op("Div", new, scale))
    if g.kv_bits == 8:
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
    kept = g.op("TensorScatter", g.input(name, dtype, shape), new, write, axis=2)
    g.output(f"{name}_out", kept, dtype, shape)
    return kept


def _packed(g: Builder, codes: ir.Value) -> ir.Value:
    """Codes (…, K) of -7 … 7 as bytes (…, K / 2): channel i low, channel i + K / 2 high."""
    low, high = g.ops("Split", 2, g.op("Add", codes, g.number(8.0)), axis=-1, num_outputs=2)
    return g.cast(g.op("Add", low, g.op("Mul", high, g.number(16.0))), UINT8)


def _unpacked(g: Builder, pairs: ir.Value) -> ir.Value:
    whole = g.cast(pairs, g.compute)
    high = g.op("Floor", g.op("Mul", whole, g.number(1 / 16)))
    low = g.op("Sub", whole, g.op("Mul", high, g.number(16.0)))
    return g.op("Sub", g.op("Concat", low, high, axis=-1), g.number(8.0))
