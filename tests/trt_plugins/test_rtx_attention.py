"""The plugin of attention in a real parser and builder, those of TensorRT for RTX; no GPU."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ort_ops.attention.op import NAME, function_body
from ort_ops.function_body import DOMAIN, OPSET, Body
from tests.plugin_harness import needs_plugins
from tests.rtx_builder import Job, build_all

pytestmark = [pytest.mark.trt, needs_plugins]

FLOATS = {ir.DataType.FLOAT16: np.float16, ir.DataType.FLOAT: np.float32}
BOOL = ir.DataType.BOOL
BY_PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
HEADS, KV_HEADS, WIDTH, LENGTHS = 4, 2, 64, (1, 64, 256)


@pytest.fixture(scope="module", autouse=True)
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")


def attention(kind: ir.DataType, by_plugin: bool = True, heads: int = HEADS) -> Job:
    """A sequence of s positions that see each other as masks say; scales are constants."""
    shapes: dict[str, tuple[ir.DataType, list[int | str]]] = {
        "q": (kind, [1, "s", HEADS * WIDTH]),
        "k": (kind, [1, KV_HEADS, "s", WIDTH]),
        "v": (kind, [1, KV_HEADS, "s", WIDTH]),
        "visible": (BOOL, [1, 1, "s", "s"]),
        "common": (BOOL, [1, "s"]),
    }
    inputs = [
        ir.Value(name=name, type=ir.TensorType(each), shape=ir.Shape(axes))
        for name, (each, axes) in shapes.items()
    ]
    given = [_constant(name, kind, value) for name, value in (("scale", 0.125), ("zero", 128))]
    sizes = {"heads": heads, "kv_heads": KV_HEADS}
    tops = {"q_top": 127, "k_top": 127, "v_top": 255, "p_top": 255}
    named = BY_PLUGIN if by_plugin else {}
    node = ir.node(NAME, [*inputs, *given], attributes={**sizes, **tops, **named}, domain=DOMAIN)
    y = node.outputs[0]
    y.name, y.type = "y", ir.TensorType(kind)
    graph = ir.Graph(
        inputs, [y], nodes=[node], initializers=given, name="g",
        opset_imports={"": OPSET, DOMAIN: 1},
    )  # fmt: skip
    body = function_body(Body(half=kind == ir.DataType.FLOAT16))
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=11, functions=[body]))
    return Job(bytes(model.SerializeToString()), _ranges(shapes))


def _constant(name: str, kind: ir.DataType, value: float) -> ir.Value:
    content = np.full((KV_HEADS, 1, 1, WIDTH), value, FLOATS[kind])
    tensor = ir.tensor(content, name=name)
    shape = ir.Shape(content.shape)
    return ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=tensor)


def _ranges(
    shapes: dict[str, tuple[ir.DataType, list[int | str]]],
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Of all inputs, with the lengths in the place of s."""
    ranges = {}
    for name, (_, axes) in shapes.items():
        least, best, most = (
            tuple(length if isinstance(axis, str) else axis for axis in axes) for length in LENGTHS
        )
        ranges[name] = (least, best, most)
    return ranges


def test_both_types_are_built(library: Path, tmp_path: Path) -> None:
    for built in build_all([attention(kind) for kind in FLOATS], library, tmp_path / "rtx"):
        assert not built.errors
        assert [kind for kind in built.layers if kind != "CONSTANT"] == ["PLUGIN_V3"]
        assert built.engine is not None
        assert NAME.encode() in built.engine


def test_standard_operators_run_where_no_plugin_is_asked_for(library: Path, tmp_path: Path) -> None:
    job = attention(ir.DataType.FLOAT16, by_plugin=False)
    (built,) = build_all([job], library, tmp_path / "rtx")
    assert built.layers and "PLUGIN_V3" not in built.layers
    assert built.engine is not None, built.errors


@pytest.mark.parametrize(
    ("heads", "text"),
    [(3, "a multiple of kv_heads = 2"), (6, "q (1, ?, 256) has to be (1, ?, 384)")],
)
def test_what_does_not_fit_ends_with_a_reason(
    library: Path, tmp_path: Path, heads: int, text: str
) -> None:
    job = attention(ir.DataType.FLOAT16, heads=heads)
    (built,) = build_all([job], library, tmp_path / "rtx")
    assert built.engine is None
    assert built.errors
    said = built.said.splitlines()
    assert any(line.startswith(f"{NAME}: ") and text in line for line in said), built.said
