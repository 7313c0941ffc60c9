"""The plugin of attention over a cache in the parser and builder of TensorRT for RTX; no GPU."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporter.engine_plans import plan_engines
from exporter.runtime.settings import Settings
from ort_ops.cached_attention.body import function_body
from ort_ops.cached_attention.op import INPUTS, NAME, ROTARY, TURNS, CachedForm, operator_name
from ort_ops.function_body import DOMAIN, OPSET, Body
from tests.fixtures_lower import CANVAS, golden
from tests.kept_codes import CACHED, make
from tests.plugin_harness import needs_plugins
from tests.rtx_builder import Job, build_all, shapes_of

pytestmark = [pytest.mark.trt, needs_plugins]

FLOATS = {ir.DataType.FLOAT16: np.float16, ir.DataType.FLOAT: np.float32}
HALF, INT8, INT32 = ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.INT32
BY_PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}
CAPACITY, WIDTH, LENGTHS = 128, 64, (1, 32, 128)
FORM = CachedForm(4, 2)


@pytest.fixture(scope="module", autouse=True)
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")


def cached(
    form: CachedForm = FORM, rotary: bool = True, kind: ir.DataType = HALF, by_plugin: bool = True,
    given_heads: int | None = None, aliased: bool = True,
) -> Job:  # fmt: skip
    """One sequence of q fed positions and a cache; what is calibrated is constant.

    `given_heads`: another number of key heads than the caches have.
    """
    kv, width = form.kv_heads, WIDTH
    kept = [1, kv, CAPACITY]
    shapes: dict[str, tuple[ir.DataType, list[int | str]]] = {
        "q": (kind, [1, "q", form.heads * width]),
        "k": (kind, [1, "q", kv * width]),
        "v": (kind, [1, "q", kv * width]),
        "k_cache": (INT8, [*kept, width * form.k_bits // 8]),
        "k_scales": (kind, [*kept, 1]),
        "v_cache": (kind, [*kept, width])
        if form.v_bits == 16
        else (INT8, [*kept, width * form.v_bits // 8]),
        "start": (ir.DataType.INT64, [1]),
        "key_block": (INT32, [1, CAPACITY]),
        "reach": (INT32, [1, "q"]),
        **{name: (kind, [1, "q", width // 2]) for name in TURNS[: 2 * rotary]},
    }
    values = {
        name: ir.Value(name=name, type=ir.TensorType(each), shape=ir.Shape(axes))
        for name, (each, axes) in shapes.items()
    }
    inputs = list(values.values())
    given = [_constant(n, kind, kv * width) for n in ("k_mean", "v_scale", "v_zero")]
    values |= {str(value.name): value for value in given}
    names = (*INPUTS, *TURNS) if rotary else INPUTS
    own = vars(form) | ({} if given_heads is None else {"kv_heads": given_heads})
    node = ir.node(
        operator_name(form, rotary), [values[name] for name in names],
        attributes={**own, **(BY_PLUGIN if by_plugin else {})}, domain=DOMAIN, num_outputs=4,
    )  # fmt: skip
    for output, like in zip(node.outputs, ("q", "k_cache", "k_scales", "v_cache"), strict=True):
        output.name, output.type, output.shape = (
            f"{like}_out",
            values[like].type,
            values[like].shape,
        )
    graph = ir.Graph(
        inputs, node.outputs, nodes=[node], initializers=given, name="g",
        opset_imports={"": OPSET, DOMAIN: 1},
    )  # fmt: skip
    body = function_body(form, rotary, Body(half=kind == HALF))
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=11, functions=[body]))
    ranges = {
        name: tuple(tuple(size if axis == "q" else axis for axis in axes) for size in LENGTHS)
        for name, (_, axes) in shapes.items()
        if "q" in axes
    }
    return Job(bytes(model.SerializeToString()), ranges, aliased)  # type: ignore[arg-type]


def _constant(name: str, kind: ir.DataType, count: int) -> ir.Value:
    tensor = ir.tensor(np.full(count, 0.125, FLOATS[kind]), name=name)
    shape = ir.Shape((count,))
    return ir.Value(name=name, type=ir.TensorType(kind), shape=shape, const_value=tensor)


FORMS = [
    FORM, CachedForm(4, 2, k_bits=4, v_bits=4), CachedForm(4, 4, 7, 15),
    CachedForm(4, 2, p_top=0, v_bits=16),
]  # fmt: skip


def test_it_is_built_with_three_caches_in_place(library: Path, tmp_path: Path) -> None:
    """In all formats, with and without turns, in halves and floats."""
    jobs = [cached(form, rotary) for form in FORMS for rotary in (False, True)]
    jobs.append(cached(kind=ir.DataType.FLOAT))
    for built in build_all(jobs, library, tmp_path / "rtx"):
        assert not built.errors
        assert [kind for kind in built.layers if kind != "CONSTANT"] == ["PLUGIN_V3"]
        assert built.engine is not None
        assert NAME.encode() in built.engine


def test_without_memory_of_inputs_it_is_refused(library: Path, tmp_path: Path) -> None:
    (plain,) = build_all([cached(aliased=False)], library, tmp_path / "plain")
    assert plain.engine is None
    assert "ALIASED_PLUGIN_IO_10_03 not enabled" in plain.errors[0]


def test_what_does_not_fit_ends_with_a_reason(library: Path, tmp_path: Path) -> None:
    (built,) = build_all([cached(given_heads=1)], library, tmp_path / "rtx")
    assert built.engine is None
    assert "k (1, ?, 128) has to be (1, ?, 64)" in built.said


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["llada", "llada2"])
@pytest.mark.parametrize("target", ["rtx-50", "jetson-orin-jp62"])
def test_graphs_with_it_are_built(
    family: str, bits: int, target: str, library: Path, tmp_path: Path
) -> None:
    """For halves, with a plugin in each block and nothing beside it that writes into caches."""
    made = make(golden(family), tmp_path, bits, "w4a16-rtn", (target,), "fp16")
    model = onnx.load(made.bundles[target].folder / "graphs" / f"{CACHED.name}.onnx")
    spans = plan_engines([CACHED], Settings(gen_length=16), CANVAS, 1)[0].profiles[-1]
    job = Job(model.SerializeToString(), shapes_of(model, spans))
    (built,) = build_all([job], library, tmp_path / "rtx")
    assert built.engine, built.errors
    names = [node.op_type for node in model.graph.node if node.domain]
    assert set(names) == {ROTARY} and len(names) == made.checkpoint.spec.layers
    assert built.layers.count("PLUGIN_V3") == len(names)
