"""Linears in the graph, with what turns and rounds their inputs.

Where the builder was told to use them, operators of ours (`ort_ops/linear_w4a8`), which round
inputs themselves; else standard operators.

Float inputs meet weights de-quantized in groups, which ONNX Runtime fuses to MatMulNBits. Inputs
rounded a token meet 8-bit weights in a product of integers: `x / s` goes through Q/DQ with scale 1,
and the output is multiplied by s, the one portable form of a scale a token that ONNX Runtime fuses
(to MatMulIntegerToFloat) and TensorRT builds. Inputs rounded in groups are rounded in floats.
"""

from dataclasses import replace
from typing import Literal

import onnx_ir as ir

from exporter.graph_builder import FLOAT, Builder
from exporter.linear_groups import expert_number
from ort_ops.linear_w4a8.op import OPS, LinearOp, function_body
from passes.activations.grid import LEAST_SCALE, ActivationGrid
from passes.base import LinearGroup

INT8, INT32 = ir.DataType.INT8, ir.DataType.INT32


def enter(g: Builder, index: int, group: LinearGroup, x: ir.Value) -> ir.Value:
    """The input (rows, S, in) of a group, turned into the basis of its weights."""
    width = _length(g, f"{index}.{group.linears[0]}")
    for prefix in g.blocks[index].transforms.get(group.name, ()):
        x = _turn(g, prefix, x, width, expert_number(group) is not None)
    return x


def _turn(g: Builder, prefix: str, x: ir.Value, width: int, empty: bool) -> ir.Value:
    """One transform (`passes.transforms.online`) whose tensors lie under `prefix`.

    `empty`: x (rows, S, width) may be of no token at all, which takes other operators.
    """
    if f"{prefix}.order" in g.tensors:
        return g.op("Gather", x, g.weight(f"{prefix}.order"), axis=-1)
    left, right = f"{prefix}.left", f"{prefix}.right"
    a = _length(g, left) if left in g.tensors else width // _length(g, right)
    b, whole = width // a, g.ints([0, 0, width])
    y = g.op("Reshape", x, g.ints([0, 0, a, b]))
    if right in g.tensors:
        y = g.op("MatMul", y, g.weight(right))
    if left in g.tensors and not empty:
        y = g.op("MatMul", g.weight(left), y)
    y = g.op("Reshape", y, whole)
    return _mix_runs(g, left, y, a, b) if left in g.tensors and empty else y


def _mix_runs(g: Builder, left: str, x: ir.Value, a: int, b: int) -> ir.Value:
    """x (rows, S, a · b), seen as (a, b), times `left` from the left, by a product from the right.

    ONNX Runtime multiplies a matrix from the left with no token only in this form, and would make
    the other one again of a Transpose in the place of the permutations.
    """
    there = g.table(f"channels_{a}", [run * b + place for place in range(b) for run in range(a)])
    back = g.table(f"channels_{b}", [place * a + run for run in range(a) for place in range(b)])
    y = g.op("Reshape", g.op("Gather", x, there, axis=-1), g.ints([0, 0, b, a]))
    y = g.op("MatMul", y, g.op("Transpose", g.weight(left), perm=[1, 0]))
    return g.op("Gather", g.op("Reshape", y, g.ints([0, 0, a * b])), back, axis=-1)


def _length(g: Builder, name: str) -> int:
    """Rows of a tensor of the file."""
    rows: int = g.tensors[name].shape.numpy()[0]
    return rows


def leave(g: Builder, index: int, group: LinearGroup, x: ir.Value) -> list[ir.Value]:
    """The outputs (rows, S, out) of a group's linears for what `enter` returned."""
    grid = g.blocks[index].activations.get(group.name)
    names = [f"{index}.{name}" for name in group.linears]
    ops = [own_op(g, name, grid) for name in names]
    if all(ops):
        return [
            _own_linear(g, op, name, grid, x) for op, name in zip(ops, names, strict=True) if op
        ]
    empty = expert_number(group) is not None  # there may be no token at all
    if grid is None:
        outputs = [standard_linear(g, name, x) for name in names]
    elif grid.granularity == "group":
        rounded = _round_groups(g, grid, x, _length(g, names[0]), empty)
        outputs = [standard_linear(g, name, rounded) for name in names]
    else:
        scale = _token_scale(g, grid, x, empty)
        whole = _clipped(g, grid, g.op("Div", x, scale))
        products = [_integers(g, whole, name, place) for place, name in enumerate(names)]
        outputs = [g.op("Mul", product, scale) for product in products]
    return [_finish(g, name, x, y) for name, y in zip(names, outputs, strict=True)]


def gated(g: Builder, index: int, group: LinearGroup, x: ir.Value) -> ir.Value:
    """silu(gate) · up of what `enter` returned, for the group of these two linears."""
    grid = g.blocks[index].activations.get(group.name)
    names = [f"{index}.{name}" for name in group.linears]
    ops = [own_op(g, name, grid) for name in names]
    plain = not any(f"{name}.left" in g.tensors or f"{name}_bias" in g.tensors for name in names)
    if plain and ops[0] is not None and ops[0] == ops[1]:
        pair = replace(ops[0], gated=True)
        weights = [value for name in names for value in _own_weight(g, pair, name)]
        return _own(g, pair, x, *weights, **_own_attributes(g, pair, names[0], grid))
    gate, up = leave(g, index, group, x)
    return g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)


def own_op(g: Builder, name: str, grid: ActivationGrid | None) -> LinearOp | None:
    """The operator of ours for a linear whose inputs go on `grid`; None where there is none."""
    use = g.operators
    if use is None or name not in g.groups or (g.compute != FLOAT and not use.gpu):
        return None
    weight_bits: Literal[4, 8] = 8 if g.tensors[name].dtype == INT8 else 4
    bits = use.float_bits if grid is None else grid.bits
    if bits is None or weight_bits not in use.weight_bits:
        return None
    channel = grid is not None and grid.granularity == "token"
    op = LinearOp(weight_bits, bits, channel)  # type: ignore[arg-type]  # OPS tells
    static = grid is not None and grid.granularity == "tensor"
    unstepped = op.steps and f"{name}.steps" not in g.tensors
    return None if static or unstepped or op not in OPS else op


def _own(g: Builder, op: LinearOp, *inputs: ir.Value, **attributes: int | float) -> ir.Value:
    return g.own(op.name, lambda body: function_body(op, body), *inputs, **attributes)


def _own_weight(g: Builder, op: LinearOp, name: str) -> list[ir.Value]:
    parts = ("", ".scale", ".steps") if op.steps else ("", ".scale")
    return [g.weight(name + part) for part in parts]


def _own_attributes(
    g: Builder, op: LinearOp, name: str, grid: ActivationGrid | None
) -> dict[str, int | float]:
    """Float inputs are rounded with a weight's groups where these are even, else a token."""
    depth, group = _length(g, name), g.groups[name]
    own = group if depth % group == 0 else depth
    along, clip = (own, 1.0) if grid is None else (grid.group or depth, grid.clip)
    return {"group": group, "activation_group": along, "step": clip / op.top}


def _own_linear(
    g: Builder, op: LinearOp, name: str, grid: ActivationGrid | None, x: ir.Value
) -> ir.Value:
    """x · W with bias and low-rank correction, by an operator of ours."""
    width = g.tensors[name].shape.numpy()[1]
    bias = g.weight(f"{name}_bias") if f"{name}_bias" in g.tensors else g.zeros(width)
    weight = _own_weight(g, op, name)
    y = _own(g, op, x, *weight, bias, **_own_attributes(g, op, name, grid))
    return _corrected(g, name, x, y)


def linear(g: Builder, name: str, x: ir.Value) -> ir.Value:
    """x · W in floats. Quantized: DequantizeLinear(axis 0, blocks of inputs) before MatMul."""
    op = own_op(g, name, None)
    return standard_linear(g, name, x) if op is None else _own_linear(g, op, name, None, x)


def standard_linear(g: Builder, name: str, x: ir.Value) -> ir.Value:
    """x · W by standard operators."""
    weight = g.weight(name)
    if name in g.groups:
        weight = g.op("DequantizeLinear", weight, g.scale(f"{name}.scale"), axis=0,
                      block_size=g.groups[name])  # fmt: skip
    return g.op("MatMul", x, weight)


def _finish(g: Builder, name: str, x: ir.Value, y: ir.Value) -> ir.Value:
    """The product y with the low-rank correction of the unrounded x, and the bias."""
    y, bias = _corrected(g, name, x, y), f"{name}_bias"
    return g.op("Add", y, g.weight(bias)) if bias in g.tensors else y


def _corrected(g: Builder, name: str, x: ir.Value, y: ir.Value) -> ir.Value:
    """y plus the low-rank correction of the unrounded x, where there is one."""
    if f"{name}.left" not in g.tensors:
        return y
    narrow = g.op("MatMul", x, g.scale(f"{name}.right"))
    return g.op("Add", y, g.op("MatMul", narrow, g.scale(f"{name}.left")))


def _round_groups(
    g: Builder, grid: ActivationGrid, x: ir.Value, width: int, empty: bool
) -> ir.Value:
    """x (rows, S, width) rounded and back, a scale a token and group of channels."""
    assert grid.group is not None
    runs = g.op("Reshape", x, g.ints([0, 0, width // grid.group, grid.group]))
    scale = _token_scale(g, grid, runs, empty)
    codes = g.op("Round", g.op("Div", runs, scale))
    if grid.clip < 1:
        codes = g.op("Clip", codes, g.number(-grid.top - 1.0), g.number(float(grid.top)))
    return g.op("Reshape", g.op("Mul", codes, scale), g.ints([0, 0, width]))


def _token_scale(g: Builder, grid: ActivationGrid, x: ir.Value, empty: bool) -> ir.Value:
    """Scales (…, 1) of the values along the last axis; a scalar if they were calibrated."""
    if grid.scale is not None:
        return g.number(grid.scale)
    largest = g.op("ReduceMax", g.op("Abs", x), g.ints([-1]), keepdims=1)
    if empty:  # of no token ONNX Runtime keeps all channels
        largest = g.op("Slice", largest, g.ints([0]), g.ints([1]), g.ints([-1]))
    return g.op("Max", g.op("Mul", largest, g.number(grid.clip / grid.top)), g.number(LEAST_SCALE))


def _clipped(g: Builder, grid: ActivationGrid, x: ir.Value) -> ir.Value:
    """x within the codes of the grid; int8 saturates on its own."""
    if grid.top < 127 and (grid.clip < 1 or grid.scale is not None):
        return g.op("Clip", x, g.number(-grid.top - 1.0), g.number(float(grid.top)))
    return x


def _integers(g: Builder, x: ir.Value, name: str, place: int) -> ir.Value:
    """The product of x, rounded to int8, and an 8-bit weight: integers times the output scales.

    Linears that share an input round it each for themselves: ONNX Runtime fuses nothing where
    QuantizeLinear has several readers. The axis says nothing beside a scalar scale, but keeps equal
    nodes from being made one again.
    """
    codes = g.op("QuantizeLinear", x, g.number(1.0), g.int8_zero(), axis=place)
    whole = g.op("DequantizeLinear", codes, g.number(1.0), g.int8_zero(), axis=place)
    return g.op("MatMul", whole, _int8(g, name))


def _int8(g: Builder, name: str) -> ir.Value:
    """The weight (in, out) from int8 and a scale an output; folded to int8 when it is loaded."""
    codes, scale = g.weight(name), g.scale(f"{name}.scale")
    if f"{name}.steps" in g.tensors:
        width = g.groups[name]
        places = g.table(f"groups_of_{width}", [row // width for row in range(_length(g, name))])
        steps = g.op("Gather", g.cast(g.weight(f"{name}.steps"), INT32), places, axis=0)
        codes = g.cast(g.op("Mul", g.cast(codes, INT32), steps), INT8)
    elif g.tensors[name].dtype != INT8:
        codes = g.cast(codes, INT8)
    if f"{name}.steps" not in g.tensors:
        scale = g.op("Reshape", scale, g.ints([-1]))
    return g.op("DequantizeLinear", codes, scale, axis=1)
