"""Plugins in a real parser and builder, those of TensorRT for RTX. No GPU: nothing is run."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ort_ops.function_body import DOMAIN, OPSET, Body
from ort_ops.int4 import pack_int4
from ort_ops.kv_update import op as kv_update
from ort_ops.linear_w4a8.op import OPS, LinearOp, function_body
from tests.linear_case import random_case
from tests.plugin_harness import needs_plugins, shown
from tests.rtx_builder import Job, build_all
from trt_plugins.build import build_library, find_nvcc, library_name

pytestmark = [pytest.mark.trt, needs_plugins]

HALF, INT64 = ir.DataType.FLOAT16, ir.DataType.INT64
BY_PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
DEPTH, WIDTH = 256, 96
W4A8 = LinearOp(4, 8)

Attributes = Mapping[str, int | float | str]


@pytest.fixture(scope="module", autouse=True)
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")


def constant(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tuple(tensor.shape.numpy()))
    tensor.name = name
    return ir.Value(name=name, type=kind, shape=shape, const_value=tensor)


def variable(name: str, kind: ir.DataType, *axes: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(axes))


def one_node(
    name: str, inputs: list[ir.Value], given: list[ir.Value], attributes: Attributes,
    body: ir.Function,
) -> bytes:  # fmt: skip
    """A model of one operator of ours and its function body, y shaped as the first input."""
    node = ir.node(name, [*inputs, *given], attributes=attributes, domain=DOMAIN)
    (y,) = node.outputs
    y.name, y.type = "y", inputs[0].type
    graph = ir.Graph(
        inputs, [y], nodes=[node], initializers=given, name="g",
        opset_imports={"": OPSET, DOMAIN: 1},
    )  # fmt: skip
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=11, functions=[body]))
    return bytes(model.SerializeToString())


def linear(
    op: LinearOp, attributes: Attributes = BY_PLUGIN, bias: int = WIDTH, bits: int | None = None
) -> tuple[Job, bytes]:
    """A linear of x (1, s, DEPTH) in fp16 and its first codes as they are stored.

    `bias`: its length; `bits`: of the codes, by default the operator's.
    """
    case = random_case(np.random.default_rng(0), op, (DEPTH, WIDTH), 64, 64, exact=False)
    given, stored = [], b""
    for number, weight in enumerate(case.weights):
        codes: ir.TensorProtocol = ir.tensor(weight.codes)
        if (bits or op.weight_bits) == 4:
            packed, shape = pack_int4(weight.codes), ir.Shape((DEPTH, WIDTH))
            codes = ir.PackedTensor(packed, ir.DataType.INT4, shape=shape)
        stored = stored or codes.tobytes()
        given.append(constant(f"codes_{number}", codes))
        given.append(constant(f"scales_{number}", ir.tensor(weight.scales.astype(np.float16))))
        if weight.steps is not None:
            given.append(constant(f"steps_{number}", ir.tensor(weight.steps)))
    if not op.gated:
        given.append(constant("bias", ir.tensor(np.zeros(bias, np.float16))))
    own = {"group": 64, "activation_group": case.activation_group, "step": case.step}
    x = variable("x", HALF, 1, "s", DEPTH)
    body = function_body(op, Body(half=True))
    model = one_node(op.name, [x], given, {**own, **attributes}, body)
    shapes = {"x": ((1, 1, DEPTH), (1, 32, DEPTH), (1, 64, DEPTH))}
    return Job(model, shapes), stored


def kv(
    kind: ir.DataType = HALF, attributes: Attributes = BY_PLUGIN, width: int = 32,
    aliased: bool = True,
) -> Job:  # fmt: skip
    """A cache (1, 4, 64, 32) that takes (1, 4, q, width)."""
    cache, start = variable("cache", kind, 1, 4, 64, 32), variable("start", INT64, 1)
    fresh = variable("fresh", kind, 1, 4, "q", width)
    inputs = [cache, fresh, start]
    body = kv_update.function_body()
    model = one_node(kv_update.NAME, inputs, [], attributes, body)
    shapes = {"fresh": ((1, 4, 1, width), (1, 4, 32, width), (1, 4, 64, width))}
    return Job(model, shapes, aliased)


def test_linears_are_built_and_their_weights_stay_as_they_are(
    library: Path, tmp_path: Path
) -> None:
    """All formats: an engine has the operator's name and its codes once, packed."""
    jobs, stored = zip(*map(linear, OPS), strict=True)
    for op, codes, built in zip(
        OPS, stored, build_all(jobs, library, tmp_path / "rtx"), strict=True
    ):
        assert not built.errors
        assert [kind for kind in built.layers if kind != "CONSTANT"] == ["PLUGIN_V3"]
        assert built.engine is not None, op.name
        assert op.name.encode() in built.engine
        assert built.engine.count(codes) == 1
        assert str(library).encode() not in built.engine


def test_caches_of_each_type_are_written_in_place(library: Path, tmp_path: Path) -> None:
    jobs = [kv(kind) for kind in (HALF, ir.DataType.FLOAT, ir.DataType.INT8)]
    for built in build_all(jobs, library, tmp_path / "rtx"):
        assert built.layers == ["PLUGIN_V3"]
        assert not built.errors
        assert built.engine is not None
    (plain,) = build_all([kv(aliased=False)], library, tmp_path / "plain")
    assert plain.engine is None
    assert "ALIASED_PLUGIN_IO_10_03 not enabled" in plain.errors[0]


def test_standard_operators_run_where_no_plugin_is_asked_for_or_there(
    library: Path, tmp_path: Path
) -> None:
    """Without the namespace, and with it but without a library, the function body is taken."""
    unnamed = build_all([linear(W4A8, {})[0], kv(attributes={})], library, tmp_path / "unnamed")
    unloaded = build_all([linear(W4A8)[0], kv()], None, tmp_path / "unloaded")
    for built in (*unnamed, *unloaded):
        assert built.layers and "PLUGIN_V3" not in built.layers
        assert built.engine is not None, built.errors


FAULTS: dict[str, tuple[Callable[[], Job], str]] = {
    "length": (lambda: linear(W4A8, bias=95)[0], "bias (95), input 3, have to be (96)"),
    "codes": (lambda: linear(W4A8, bits=8)[0], "input 1 is not to be int8"),
    "step": (lambda: linear(W4A8, {**BY_PLUGIN, "step": -1.0})[0], "step = -1 has to be"),
    "width": (lambda: kv(width=31), "fresh (1, 4, ?, 31) and start (1) do not fit"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_ends_with_a_reason(library: Path, tmp_path: Path, fault: str) -> None:
    job, text = FAULTS[fault]
    (built,) = build_all([job()], library, tmp_path / "rtx")
    assert built.engine is None
    assert built.errors
    assert any(line.startswith("Dqx") and text in line for line in built.said.splitlines())


@pytest.mark.parametrize("sm", [87, 110, 120])
def test_libraries_for_gpus_serve_the_builder_too(tmp_path: Path, sm: int) -> None:
    """The library that runs an engine, compiled by nvcc, is one that it can be built with."""
    if find_nvcc() is None or not shutil.which("g++"):
        pytest.skip("no nvcc")
    library = build_library(tmp_path, sm)
    assert library.name == library_name(sm)
    assert shown(library) == {"getCreators", "setLoggerFinder"}
    for built in build_all([linear(W4A8)[0], kv()], library, tmp_path / "rtx"):
        assert "PLUGIN_V3" in built.layers
        assert built.engine is not None, built.errors
