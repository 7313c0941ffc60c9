"""Attention on integers: numpy reference, function body and kernels agree."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ort_ops.attention.op import NAME, AttentionTops, function_body, reference
from ort_ops.build import prebuild
from ort_ops.function_body import DOMAIN, OPSET

KERNELS = ("avx512", "avxvnni", "avx2", "i8mm", "neon", "portable")
FLOAT, BOOL = ir.DataType.FLOAT, ir.DataType.BOOL


def model(heads: int, kv_heads: int, width: int, tops: AttentionTops) -> bytes:
    """One node between inputs and output."""
    shapes: dict[str, tuple[ir.DataType, list[int | str]]] = {
        "q": (FLOAT, ["B", "Q", heads * width]),
        "k": (FLOAT, ["B", kv_heads, "S", width]),
        "v": (FLOAT, ["B", kv_heads, "S", width]),
        "visible": (BOOL, ["B", 1, "Q", "S"]),
        "common": (BOOL, ["B", "S"]),
        "v_scale": (FLOAT, [kv_heads, 1, 1, width]),
        "v_zero": (FLOAT, [kv_heads, 1, 1, width]),
    }
    inputs = [
        ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))
        for name, (kind, shape) in shapes.items()
    ]
    attributes = {
        "heads": heads, "kv_heads": kv_heads,
        "q_top": tops.q, "k_top": tops.k, "v_top": tops.v, "p_top": tops.p,
    }  # fmt: skip
    node = ir.node(NAME, inputs, attributes=attributes, domain=DOMAIN)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(FLOAT), ir.Shape(["B", "Q", heads * width])
    opsets = {"": OPSET, DOMAIN: 1}
    graph = ir.Graph(inputs, [y], nodes=[node], name="g", opset_imports=opsets)
    whole = ir.Model(graph, ir_version=11, functions=[function_body()])
    data: bytes = ir.serde.serialize_model(whole).SerializeToString()
    return data


def session(data: bytes, library: Path | None, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def feeds(
    seed: int, rows: int, queries: int, keys: int, heads: int, kv_heads: int, width: int,
    tops: AttentionTops,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Random operands; some keys are hidden from some queries, and at least one is common."""
    rng = np.random.default_rng(seed)
    k = rng.normal(size=(rows, kv_heads, keys, width)) + rng.normal(size=(kv_heads, 1, width)) * 4
    v = rng.normal(size=(rows, kv_heads, keys, width))
    visible = np.asarray(rng.random((rows, 1, queries, keys)) < 0.8)
    visible[..., 0] = True
    common = np.asarray(visible[:, 0].all(1))
    low, high = v.min((0, 2)), v.max((0, 2)) + 0.1
    scale = (high - low) / tops.v
    zero = np.rint(-low / scale)
    floats = {
        "q": rng.normal(size=(rows, queries, heads * width)) * 2, "k": k, "v": v,
        "v_scale": scale.reshape(kv_heads, 1, 1, width),
        "v_zero": zero.reshape(kv_heads, 1, 1, width),
    }  # fmt: skip
    return {
        **{name: np.ascontiguousarray(x, np.float32) for name, x in floats.items()},
        "visible": visible, "common": common,
    }  # fmt: skip


def expected(
    x: dict[str, np.ndarray], heads: int, tops: AttentionTops
) -> tuple[np.ndarray, np.ndarray]:
    """y in float64, and how far from it fp32 may be.

    Codes of q and v are found by the same steps in fp32, so they are equal. Those of k and p may
    differ by one where they lie next to a half: the mean key is summed in another order, and exp
    rounds. The bound is two steps of p on the largest value of a channel, which holds for a few
    such codes in a row; that there are few is what the test asserts beside it.
    """
    y = reference(**x, heads=heads, tops=tops)
    shared = heads // x["k"].shape[1]
    largest = np.abs(x["v"]).max(2).repeat(shared, 1)  # (rows, heads, K)
    step = largest.reshape(len(y), 1, -1) / max(tops.p, 15)
    return y, step * 2 + 1e-5 * largest.reshape(len(y), 1, -1)


@pytest.fixture(params=["body", *KERNELS])
def library(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path | None]:
    if request.param == "body":
        yield None
        return
    monkeypatch.setenv("DQX_KERNEL", request.param)
    built = prebuild()
    try:
        session(model(1, 1, 4, AttentionTops()), built)
    except Exception as error:
        assert "DQX_KERNEL" in str(error)
        pytest.skip(f"{request.param} does not run on this machine")
    yield built


SHAPES = [
    (1, 7, 19, 2, 1, 8), (2, 32, 96, 4, 2, 16), (1, 1, 1, 1, 1, 4), (1, 100, 130, 2, 2, 64),
    (1, 5, 70, 4, 1, 128), (1, 50, 64, 1, 1, 20), (1, 3, 6, 2, 2, 10),
]  # fmt: skip
TOPS = [AttentionTops(), AttentionTops(v=15), AttentionTops(7, 7, 15, 15)]


@pytest.mark.parametrize("tops", TOPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(
    library: Path | None, shape: tuple[int, ...], tops: AttentionTops
) -> None:
    rows, queries, keys, heads, kv_heads, width = shape
    x = feeds(0, rows, queries, keys, heads, kv_heads, width, tops)
    (y,) = session(model(heads, kv_heads, width, tops), library).run(None, x)
    want, bound = expected(x, heads, tops)
    assert (np.abs(y - want) <= bound).all()
    # and flips are rare: nearly all outputs are within rounding of fp32
    near = np.abs(y - want) <= 1e-4 * np.abs(want).max()
    assert near.mean() > 0.95


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_probabilities_may_stay_floats(shape: tuple[int, ...]) -> None:
    """Of the function body; kernels for CPUs refuse."""
    rows, queries, keys, heads, kv_heads, width = shape
    tops = AttentionTops(v=0, p=0)
    x = feeds(0, rows, queries, keys, heads, kv_heads, width, AttentionTops())
    (y,) = session(model(heads, kv_heads, width, tops), None).run(None, x)
    want, bound = expected(x, heads, tops)
    assert (np.abs(y - want) <= bound).all()
    with pytest.raises(Exception, match="between 1 and 255"):
        session(model(heads, kv_heads, width, tops), prebuild())


def test_many_small_probabilities_are_not_nothing() -> None:
    """In steps of 1 / 255 of one, those of 2000 keys that all count alike would be 0."""
    x = feeds(8, 1, 3, 2000, 2, 1, 16, AttentionTops())
    x["q"] *= 1e-3
    y = reference(**x, heads=2, tops=AttentionTops())
    seen = x["visible"][0, 0] / x["visible"][0, 0].sum(-1, keepdims=True)
    mean = np.tile(seen @ x["v"][0, 0], 2)[None]  # of both heads
    assert np.abs(y - mean).max() < x["v_scale"].max() / 2  # a value is half a step off at most


def run(library: Path | None, x: dict[str, np.ndarray], threads: int = 1) -> np.ndarray:
    """y for 4 heads of 16 channels, two of them sharing keys and values."""
    found: np.ndarray = session(model(4, 2, 16, AttentionTops()), library, threads).run(None, x)[0]
    return found


def test_threads_change_nothing(library: Path | None) -> None:
    x = feeds(1, 2, 70, 90, 4, 2, 16, AttentionTops())
    alone = run(library, x)
    assert (run(library, x, 2) == alone).all() and (run(library, x, 8) == alone).all()


def test_what_is_hidden_does_not_count(library: Path | None) -> None:
    """Keys and values that nobody sees may hold anything finite; outputs stay, bit by bit."""
    x = feeds(2, 1, 9, 40, 4, 2, 16, AttentionTops())
    x["visible"][..., 30:] = False
    x["common"][:, 30:] = False
    before = run(library, x)
    x["k"][:, :, 30:] = 1e4
    x["v"][:, :, 30:] = -1e4
    assert (run(library, x) == before).all()


def test_a_query_that_sees_nothing_takes_the_mean(library: Path | None) -> None:
    """As a softmax of equal scores does: such rows are padding, and stay finite."""
    x = feeds(3, 1, 5, 12, 4, 2, 16, AttentionTops())
    x["visible"][:, :, 2] = False
    y = run(library, x)
    want, bound = expected(x, 4, AttentionTops())
    assert (np.abs(y - want) <= bound).all()


def test_without_common_keys_none_is_taken_off(library: Path | None) -> None:
    x = feeds(8, 2, 9, 40, 4, 2, 16, AttentionTops())
    x["common"][1] = False
    y = run(library, x)
    want, bound = expected(x, 4, AttentionTops())
    assert (np.abs(y - want) <= bound).all()


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_what_is_not_a_number_stays_visible(library: Path | None, name: str) -> None:
    x = feeds(4, 1, 5, 12, 4, 2, 16, AttentionTops())
    x[name][0, 1, 1] = np.nan
    assert np.isnan(run(library, x)).any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = feeds(5, 1, 5, 12, 4, 2, 16, AttentionTops())
    x["visible"] = x["visible"][..., :-1]
    with pytest.raises(Exception, match="masks do not fit"):
        run(prebuild(), x)


@pytest.mark.parametrize("name", ["q", "k", "v", "visible", "common", "v_scale", "v_zero"])
def test_operands_of_another_type_are_refused(name: str) -> None:
    """Of kernels alone: they would read beyond the end of what is smaller than they think."""
    whole = ir.serde.deserialize_model(onnx.load_from_string(model(4, 2, 16, AttentionTops())))
    operand = next(value for value in whole.graph.inputs if value.name == name)
    operand.type = ir.TensorType(ir.DataType.FLOAT16)
    data = ir.serde.serialize_model(whole).SerializeToString()
    x = feeds(7, 1, 5, 12, 4, 2, 16, AttentionTops())
    x[name] = x[name].astype(np.float16)
    with pytest.raises(Exception, match=r"attention takes fp32|tensor\(float16\)"):
        session(data, prebuild()).run(None, x)


def test_no_queries_at_all() -> None:
    """Of kernels alone: ONNX Runtime's Reshape cannot tell shapes apart then."""
    assert run(prebuild(), feeds(6, 1, 0, 12, 4, 2, 16, AttentionTops())).shape == (1, 0, 64)
