"""Attention over a cache by ONNX Runtime's CUDA provider, on the host and on GPUs."""

from dataclasses import asdict, replace

import numpy as np
import onnxruntime as ort
import pytest

from ort_ops.cached_attention.op import INPUTS, NAME, ROTARY, TURNS, CachedForm
from tests.cached_attention_case import Array, CachedCase, CachedShape, random_case
from tests.one_node import Device, OneNode

CACHES = ("k_cache", "k_scales", "v_cache")
BITS = pytest.mark.parametrize("bits", [(8, 8), (4, 4), (8, 16)], ids=lambda b: f"k{b[0]}v{b[1]}")
TYPES = pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])


def some_case(bits: tuple[int, int], half: bool, turned: int) -> CachedCase:
    form = CachedForm(4, 2, 127, 0 if bits[1] == 16 else 255, *bits)
    shape = CachedShape(rows=2, queries=5, capacity=20, width=32, turned=turned)
    return random_case(np.random.default_rng(bits[0] + bits[1] + turned), shape, form, half)


def node(case: CachedCase) -> OneNode:
    inputs = {name: case.x[name] for name in (*INPUTS, *TURNS) if name in case.x}
    like = {"y": "q", **{f"{name}_out": name for name in CACHES}}
    outputs = {name: (inputs[of].dtype, inputs[of].shape) for name, of in like.items()}
    return OneNode(ROTARY if "cos" in inputs else NAME, asdict(case.form), inputs, outputs)


def assert_right(case: CachedCase, outputs: list[Array]) -> None:
    y, k, k_scales, v = outputs
    least, most, _ = case.bounds()
    assert ((least <= y) & (y <= most)).all()
    caches = case.caches()
    for found, wanted in ((k, caches.k), (k_scales, caches.k_scales), (v, caches.v)):
        np.testing.assert_array_equal(found, wanted)


@BITS
@TYPES
@pytest.mark.parametrize("turned", [0, 16])
def test_the_operator_is_right(
    device: Device, bits: tuple[int, int], half: bool, turned: int
) -> None:
    case = some_case(bits, half, turned)
    assert_right(case, node(case).run(device))


@TYPES
def test_bound_caches_are_written_in_place(device: Device, half: bool) -> None:
    case = some_case((8, 8), half, 0)
    model = node(case)
    session = model.session(device)
    where = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    values = {n: ort.OrtValue.ortvalue_from_numpy(x.copy(), where, 0) for n, x in case.x.items()}
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y", where)
    for name in CACHES:
        binding.bind_ortvalue_output(f"{name}_out", values[name])
    session.run_with_iobinding(binding)
    y = binding.copy_outputs_to_cpu()[0]
    assert_right(case, [y, *(values[name].numpy() for name in CACHES)])


def test_what_does_not_fit_is_refused(device: Device) -> None:
    case = some_case((8, 8), False, 0)
    with pytest.raises(Exception, match="p_top 1 to 255"):
        node(replace(case, form=replace(case.form, p_top=0))).session(device)
    with pytest.raises(Exception, match="k_scales has shape"):
        wrong = {**case.x, "k_scales": case.x["k_scales"][:, :1]}
        node(replace(case, x=wrong)).run(device)
