"""Function bodies for models in fp16: what those in fp32 compute, rounded once at the end."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ort_ops.attention import op as attention
from ort_ops.function_body import DOMAIN, OPSET, Body
from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8 import op as linear
from ort_ops.linear_w4a8.op import LinearOp

FLOAT, HALF, BOOL = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BOOL
INT4, INT8 = ir.DataType.INT4, ir.DataType.INT8
OPSETS = (21, OPSET)
DEPTH, WIDTH, GROUP = 64, 24, 16

Arrays = dict[str, np.ndarray]


def run(
    function: ir.Function, node_attributes: Mapping[str, int | float], opset: int, half: bool,
    activations: Arrays, constants: dict[str, ir.TensorProtocol], shape: list[int],
) -> np.ndarray:  # fmt: skip
    """y of one node of the function; floats among the activations are fp16 if `half`."""
    kind = HALF if half else FLOAT
    feeds = {
        name: array.astype(np.float16 if half else np.float32) if array.dtype.kind == "f" else array
        for name, array in activations.items()
    }
    inputs = [
        ir.Value(
            name=name, type=ir.TensorType(kind if array.dtype.kind == "f" else BOOL),
            shape=ir.Shape(array.shape),
        )
        for name, array in feeds.items()
    ]  # fmt: skip
    weights = [
        ir.Value(
            name=name, type=ir.TensorType(t.dtype), shape=ir.Shape(t.shape.numpy()), const_value=t
        )
        for name, t in constants.items()
    ]
    order = {value.name: value for value in [*inputs, *weights]}
    given = [order[value.name] for value in function.inputs]
    node = ir.node(function.name, given, attributes=dict(node_attributes), domain=DOMAIN)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(kind), ir.Shape(shape)
    versions = {"": opset, DOMAIN: 1}
    graph = ir.Graph(
        inputs, [y], nodes=[node], initializers=weights, name="g", opset_imports=versions
    )
    model = ir.Model(graph, ir_version=10, functions=[function])
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


def one_rounding(half: np.ndarray, single: np.ndarray) -> None:
    """`half` is `single` rounded to fp16; where that is a tie to within fp32's own error, a step
    beside it.
    """
    assert half.dtype == np.float16
    exact = single.astype(np.float16)
    near = np.abs(half.astype(np.float32) - single) <= np.spacing(np.abs(exact)) * 0.51
    assert near.all()


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    "op",
    [LinearOp(4, 8, channel=True), LinearOp(4, 8), LinearOp(4, 4, channel=True, gated=True),
     LinearOp(8, 8, gated=True)],
    ids=lambda op: op.name,
)  # fmt: skip
def test_linear(op: LinearOp, opset: int) -> None:
    random = np.random.default_rng(5)
    top = 7 if op.weight_bits == 4 else 127
    activations = {"x": random.normal(size=(1, 5, DEPTH)).astype(np.float16)}
    if not op.gated:
        activations["bias"] = random.normal(size=WIDTH).astype(np.float16)
    constants: dict[str, ir.TensorProtocol] = {}
    for prefix in ("gate_", "up_") if op.gated else ("",):
        codes = random.integers(-top, top + 1, (DEPTH, WIDTH)).astype(np.int8)
        constants[f"{prefix}codes"] = (
            ir.PackedTensor(pack_int4(codes), INT4, shape=ir.Shape(codes.shape))
            if op.weight_bits == 4
            else ir.tensor(codes)
        )
        shape = (WIDTH,) if op.channel else (DEPTH // GROUP, WIDTH)
        constants[f"{prefix}scales"] = ir.tensor(
            random.uniform(0.01, 0.02, shape).astype(np.float32)
        )
        if op.steps:
            steps = random.integers(1, 17, (DEPTH // GROUP, WIDTH)).astype(np.int8)
            constants[f"{prefix}steps"] = ir.tensor(steps)
    along = DEPTH if op.channel else GROUP
    attributes = {"group": GROUP, "activation_group": along, "step": 1 / op.top}
    half, single = (
        run(
            linear.function_body(op, Body(opset, half)), attributes, opset, half, activations,
            constants, [1, 5, WIDTH],
        )
        for half in (True, False)
    )  # fmt: skip
    one_rounding(half, single)


@pytest.mark.parametrize("opset", OPSETS)
def test_attention(opset: int) -> None:
    random = np.random.default_rng(6)
    heads, kv_heads, width, queries, keys = 4, 2, 16, 3, 7
    seen = random.random((1, 1, queries, keys)) < 0.7
    seen[..., 0] = True
    activations = {
        "q": random.normal(size=(1, queries, heads * width)).astype(np.float16),
        "k": random.normal(size=(1, kv_heads, keys, width)).astype(np.float16),
        "v": random.normal(size=(1, kv_heads, keys, width)).astype(np.float16),
        "visible": seen,
        "common": np.asarray(seen.all((1, 2))),
        "v_scale": random.uniform(0.02, 0.04, (kv_heads, 1, 1, width)).astype(np.float16),
        "v_zero": np.full((kv_heads, 1, 1, width), 128, np.float16),
    }
    attributes = {
        "heads": heads, "kv_heads": kv_heads, "q_top": 127, "k_top": 127, "v_top": 255,
        "p_top": 255,
    }  # fmt: skip
    half, single = (
        run(
            attention.function_body(Body(opset, half)), attributes, opset, half, activations, {},
            [1, queries, heads * width],
        )
        for half in (True, False)
    )  # fmt: skip
    one_rounding(half, single)
