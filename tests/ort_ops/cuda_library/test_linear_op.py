"""Linears of ONNX Runtime's CUDA provider, on the host and on GPUs."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ort_ops.function_body import Body
from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.op import OPS, LinearOp, function_body
from tests.launched_linear import Kind, assert_right, in_kind
from tests.linear_case import Float32, LinearCase, random_case, random_rows
from tests.one_node import Array, Device, OneNode

EVERY = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
TYPES: dict[Kind, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}


def some_case(op: LinearOp, depth: int = 64, group: int = 32) -> LinearCase:
    """x of 16 bits is not rounded on GPUs."""
    rng = np.random.default_rng(len(op.name) + op.weight_bits)
    case = random_case(rng, op, (depth, 32), group, depth, exact=False)
    return replace(case, kept=op.activation_bits == 16)


def node(case: LinearCase, x: Float32, kind: Kind) -> OneNode:
    dtype = TYPES[kind]
    inputs: dict[str, Array | ir.PackedTensor[Any]] = {"x": x.astype(dtype)}
    for i, weight in enumerate(case.weights):
        inputs[f"codes_{i}"] = weight.codes
        if case.op.weight_bits == 4:
            packed, shape = pack_int4(weight.codes), ir.Shape(weight.codes.shape)
            inputs[f"codes_{i}"] = ir.PackedTensor(packed, ir.DataType.INT4, shape=shape)
        inputs[f"scales_{i}"] = weight.scales.astype(np.float16 if case.half else np.float32)
        if weight.steps is not None:
            inputs[f"steps_{i}"] = weight.steps
    if not case.op.gated:
        inputs["bias"] = case.bias.astype(dtype)
    attributes = {
        "group": case.group, "activation_group": case.activation_group, "step": case.step,
    }  # fmt: skip
    outputs = {"y": (np.dtype(dtype), (*x.shape[:-1], case.shape[1]))}
    return OneNode(case.op.name, attributes, inputs, outputs, frozenset(inputs) - {"x"})


@EVERY
@pytest.mark.parametrize("kind", TYPES)
def test_the_operator_is_the_reference(device: Device, op: LinearOp, kind: Kind) -> None:
    given = some_case(op)
    case, x = in_kind(given, random_rows(np.random.default_rng(1), given, (2, 5)), kind)
    (y,) = node(case, x, kind).run(device)
    assert y.dtype == TYPES[kind]
    assert_right(case, x, y.astype(np.float32), kind)


@pytest.mark.parametrize("kind", TYPES)
def test_the_node_runs_and_not_its_function(device: Device, kind: Kind, tmp_path: Path) -> None:
    op = LinearOp(4, 8)
    case = some_case(op)
    model = node(case, np.zeros((1, 64), np.float32), kind)
    model = replace(model, functions=[function_body(op, Body(half=kind == "fp16"))])
    model.session(device, tmp_path / "with.onnx")
    model.session(Device(), tmp_path / "without.onnx")
    kept, inlined = (
        [node.op_type for node in ir.load(tmp_path / name).graph]
        for name in ("with.onnx", "without.onnx")
    )
    assert kept == [op.name]
    assert op.name not in inlined


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (70,)], ids=str)
def test_any_number_of_rows(device: Device, shape: tuple[int, ...]) -> None:
    case = some_case(LinearOp(4, 8))
    x = np.random.default_rng(3).normal(size=(*shape, 64)).astype(np.float32)
    (y,) = node(case, x, "fp32").run(device)
    assert_right(case, x, y, "fp32")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"group": 16}, "scales has shape (2, 32, ), not (4, 32, )"),
        ({"activation_group": 24}, "activation_group does not fit the weight"),
        ({"step": 0.0}, "groups and step have to be positive"),
    ],
    ids=["group", "activation group", "step"],
)
def test_what_does_not_fit_is_refused(
    device: Device, change: dict[str, int | float], says: str
) -> None:
    case = some_case(LinearOp(4, 8))
    model = node(case, np.zeros((1, 64), np.float32), "fp32")
    model = replace(model, attributes={**model.attributes, **change})
    with pytest.raises(Exception, match=re.escape(says)):
        model.run(device)
