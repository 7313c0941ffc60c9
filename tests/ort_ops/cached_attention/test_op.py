"""Attention over a cache of codes: the function body computes what the reference says."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ort_ops.cached_attention.body import function_body
from ort_ops.cached_attention.op import (
    HIDDEN,
    INPUTS,
    TURNS,
    CachedForm,
    Caches,
    operator_name,
    reference,
)
from ort_ops.function_body import DOMAIN, OPSET, Body
from tests.cached_attention_case import CachedCase, CachedShape, random_case

TYPES = {"f4": ir.DataType.FLOAT, "f2": ir.DataType.FLOAT16, "i1": ir.DataType.INT8,
         "i4": ir.DataType.INT32, "i8": ir.DataType.INT64}  # fmt: skip
OUTPUTS = ("y", "k_cache_out", "k_scales_out", "v_cache_out")
FORMS = [
    CachedForm(4, 2), CachedForm(2, 2, k_bits=4, v_bits=4), CachedForm(6, 2, 7, 15, 4, 4),
    CachedForm(4, 1, k_bits=8, v_bits=4), CachedForm(4, 2, p_top=0, v_bits=16),
    CachedForm(3, 1, p_top=0, k_bits=4, v_bits=16),
]  # fmt: skip
SHAPES = [
    CachedShape(2, 5, 40, 16), CachedShape(1, 1, 1, 8), CachedShape(3, 7, 130, 32),
    CachedShape(2, 32, 64, 20, turned=12), CachedShape(1, 9, 33, 64, turned=64),
]  # fmt: skip
OPSETS = (21, OPSET)


def run(case: CachedCase, opset: int = OPSET) -> tuple[np.ndarray, Caches]:
    """One node of the operator in ONNX Runtime, which has no kernel for it."""
    half = case.x["q"].dtype == np.float16
    rotary = "cos" in case.x
    names = [name for name in (*INPUTS, *TURNS) if name in case.x]
    inputs = [_value(name, case.x[name]) for name in names]
    name, attributes = operator_name(case.form, rotary), vars(case.form)
    node = ir.node(name, inputs, attributes=attributes, domain=DOMAIN, num_outputs=4)
    like = ("q", "k_cache", "k_scales", "v_cache")
    for output, name, source in zip(node.outputs, OUTPUTS, like, strict=True):
        value = _value(source, case.x[source])
        output.name, output.type, output.shape = name, value.type, value.shape
    versions = {"": opset, DOMAIN: 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], name="g", opset_imports=versions)
    function = function_body(case.form, rotary, Body(opset, half))
    model = ir.Model(graph, ir_version=10, functions=[function])
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    y, *caches = session.run(list(OUTPUTS), {name: case.x[name] for name in names})
    return y, Caches(*caches)


def _value(name: str, array: np.ndarray) -> ir.Value:
    kind = TYPES[array.dtype.str[1:]]
    return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(array.shape))


def check(case: CachedCase, y: np.ndarray, caches: Caches) -> float:
    """Caches are equal bit by bit, y is within its bounds; returns the share of certain codes."""
    for found, wanted in zip(vars(caches).values(), vars(case.caches()).values(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    low, high, certain = case.bounds()
    assert (low <= y).all() and (y <= high).all(), np.abs(y - (low + high) / 2).max()
    return certain


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_body_agrees_with_the_reference(form: CachedForm, opset: int, half: bool) -> None:
    rng, shares = np.random.default_rng(7), []
    for shape in SHAPES:
        for _ in range(3):
            case = random_case(rng, shape, form, half)
            shares.append(check(case, *run(case, opset)))
    assert np.mean(shares) > 0.98  # else the bounds would allow for much that is wrong


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_reference_lies_within_the_bounds(form: CachedForm, half: bool) -> None:
    rng = np.random.default_rng(8)
    for shape in SHAPES:
        case = random_case(rng, shape, form, half)
        y, caches = reference(case.form, case.x)
        check(case, y.astype(case.x["q"].dtype), caches)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_bounds_notice_another_key(form: CachedForm) -> None:
    """One key more than a query sees, or one less, is out of bounds."""
    rng, apart = np.random.default_rng(9), 0
    for _ in range(8):
        case = random_case(rng, CachedShape(1, 4, 24, 16), form, half=False)
        x = dict(case.x)
        x["key_block"] = np.zeros_like(x["key_block"])
        x["reach"] = np.zeros_like(x["reach"])
        x["k_scales"] = np.full_like(x["k_scales"], 1 / 64)
        x["v_cache"] = np.nan_to_num(x["v_cache"])
        whole = CachedCase(form, x)
        hidden = x["key_block"].copy()
        hidden[0, rng.integers(24)] = HIDDEN
        y = reference(form, {**x, "key_block": hidden})[0]
        low, high, _ = whole.bounds()
        apart += bool(((y < low) | (y > high)).any())
    assert apart >= 7


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_filling_a_cache_in_steps_or_at_once_is_the_same(form: CachedForm) -> None:
    rng = np.random.default_rng(10)
    case = random_case(rng, CachedShape(2, 24, 24, 16, turned=8), form, half=False)
    x = {**case.x, "start": np.zeros(2, np.int64)}
    at_once = run(replace(case, x=x))[1]
    caches = Caches(x["k_cache"], x["k_scales"], x["v_cache"])
    for first, stop in ((0, 5), (5, 6), (6, 24)):
        part = {
            n: a[:, first:stop] if n in ("q", "k", "v", "reach", "cos", "sin") else a
            for n, a in x.items()
        }
        part |= {"start": np.full(2, first), "k_cache": caches.k, "k_scales": caches.k_scales,
                 "v_cache": caches.v}  # fmt: skip
        _, caches = run(replace(case, x=part))
    for found, wanted in zip(vars(caches).values(), vars(at_once).values(), strict=True):
        np.testing.assert_array_equal(found, wanted)
