"""Numpy reference, function body in ONNX Runtime, and kernels of quantized linears agree."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.build import compiler, prebuild
from ort_ops.linear_w4a8.op import OPS, LinearOp, Weight
from tests.linear_case import LinearCase, open_session, random_case, random_rows, run

KERNELS = ("avx512", "avxvnni", "avx2", "i8mm", "neon", "portable")
W4A8, W8A8, GATED = LinearOp(4, 8), LinearOp(8, 8), LinearOp(4, 8, gated=True)
CHANNEL = LinearOp(4, 8, channel=True)
pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library() -> Path:
    return prebuild()


@contextmanager
def forced(kernel: str) -> Iterator[None]:
    """Sessions that are opened inside use this kernel."""
    before = os.environ.get("DQX_KERNEL")
    os.environ["DQX_KERNEL"] = kernel
    try:
        yield
    finally:
        del os.environ["DQX_KERNEL"]
        if before is not None:
            os.environ["DQX_KERNEL"] = before


@pytest.fixture(scope="module")
def kernels(library: Path) -> list[str]:
    """Those that run here."""
    name_of = ctypes.CDLL(str(library)).dqx_kernel_name
    name_of.restype = ctypes.c_char_p
    found = []
    for kernel in KERNELS:
        with forced(kernel):
            if name_of() == kernel.encode():
                found.append(kernel)
    assert "portable" in found
    return found


def some_case(op: LinearOp, shape: tuple[int, int], group: int, exact: bool = False) -> LinearCase:
    return random_case(np.random.default_rng(3), op, shape, group, shape[0], exact)


def largest_excess(case: LinearCase, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32],
                   body: bool = False) -> float:  # fmt: skip
    """How far an output is outside of its bound: at most 0 if all is well."""
    wanted = case.expected(x)
    assert y.shape == wanted.shape
    return float((np.abs(y - wanted) - case.bound(x, body)).max(initial=0))


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCase, npt.NDArray[np.float32]]:
    """Ragged depths, odd widths, groups that do not divide, activations in groups, 0 … 40 rows."""
    op = draw(st.sampled_from(OPS))
    activation_group = draw(st.sampled_from([1, 5, 8, 16, 24, 32, 64, 96]))
    depth = activation_group * draw(st.integers(1, max(1, 200 // activation_group)))
    width = draw(st.integers(1, 140))
    group = draw(st.sampled_from([16, 32, 64, 128, depth]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    case = random_case(rng, op, (depth, width), group, activation_group, draw(st.booleans()))
    rows = draw(st.sampled_from([(0,), (1,), (3,), (13,), (40,), (2, 3), (0, 2), (1, 1)]))
    return case, random_rows(rng, case, rows)


@settings(max_examples=150)
@given(cases())
def test_the_function_body_is_the_reference(
    pair: tuple[LinearCase, npt.NDArray[np.float32]],
) -> None:
    case, x = pair
    assert largest_excess(case, x, run(open_session(case.model(x.ndim), None), x), body=True) <= 0


@settings(max_examples=150)
@given(pair=cases())
def test_every_kernel_is_the_reference(
    library: Path, kernels: list[str], pair: tuple[LinearCase, npt.NDArray[np.float32]]
) -> None:
    case, x = pair
    model = case.model(x.ndim)
    for kernel in kernels:
        with forced(kernel):
            y = run(open_session(model, library), x)
        assert largest_excess(case, x, y) <= 0, kernel


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_whole_numbers_are_exact(op: LinearOp) -> None:
    """Half of the comparisons above compare bits: they would say nothing were the bound above 0."""
    case = some_case(replace(op, gated=False), (96, 70), 32, exact=True)
    x = random_rows(np.random.default_rng(0), case, (5,))
    exact = case.bound(x, body=False) == 0
    assert exact.mean() > 0.99


@pytest.mark.parametrize("rows", [6, 7, 12, 13, 96, 97, 193, 600])
def test_many_rows(library: Path, kernels: list[str], rows: int) -> None:
    case = some_case(W4A8, (200, 67), 64)
    x = random_rows(np.random.default_rng(rows), case, (rows,))
    for kernel in kernels:
        with forced(kernel):
            assert largest_excess(case, x, run(open_session(case.model(), library), x)) <= 0


@pytest.mark.parametrize("op", [W4A8, W8A8, GATED, CHANNEL], ids=lambda op: op.name)
def test_threads_change_no_bit(library: Path, op: LinearOp) -> None:
    case = some_case(op, (256, 200), 64)
    x = random_rows(np.random.default_rng(0), case, (600,))
    one, *more = (run(open_session(case.model(), library, n), x) for n in (1, 2, 8))
    for other in more:
        np.testing.assert_array_equal(other, one)


def test_rows_do_not_depend_on_their_neighbours(library: Path) -> None:
    case = some_case(W4A8, (200, 67), 64)
    x = random_rows(np.random.default_rng(0), case, (50,))
    session = open_session(case.model(), library)
    together = run(session, x)
    for row in range(50):
        np.testing.assert_array_equal(run(session, x[row : row + 1])[0], together[row])


def test_not_a_number_stays_in_its_row(library: Path, kernels: list[str]) -> None:
    case = some_case(W4A8, (200, 67), 64)
    x = random_rows(np.random.default_rng(0), case, (20,))
    broken = x.copy()
    broken[3, 7], broken[15, 0] = np.nan, -np.inf
    others = np.delete(np.arange(20), [3, 15])
    for kernel in kernels:
        with forced(kernel):
            session = open_session(case.model(), library)
        y = run(session, broken)
        assert np.isnan(y[3]).all() and not np.isfinite(y[15]).any()
        np.testing.assert_array_equal(y[others], run(session, x)[others])


def test_a_second_session_shares_and_outlives_the_first(library: Path) -> None:
    case = some_case(GATED, (200, 67), 64)
    x = random_rows(np.random.default_rng(0), case, (20,))
    first, second = (open_session(case.model(), library) for _ in range(2))
    before = run(first, x)
    np.testing.assert_array_equal(run(second, x), before)
    del first
    np.testing.assert_array_equal(run(second, x), before)


def test_with_the_library_the_node_stays_and_without_it_is_inlined(
    library: Path, tmp_path: Path
) -> None:
    case = some_case(W4A8, (64, 16), 32)
    for given_library in (library, None):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        if given_library:
            options.register_custom_ops_library(str(given_library))
        ort.InferenceSession(case.model(), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert (case.op.name in kinds) == (given_library is not None), kinds
        assert ("MatMulNBits" in kinds) == (given_library is None), kinds


def assert_refused(case: LinearCase, library: Path, says: str, constant: bool = True) -> None:
    with pytest.raises(Exception, match=says):
        open_session(case.model(constant=constant), library)


def test_an_unknown_kernel_is_named(library: Path) -> None:
    with forced("abacus"):
        assert_refused(some_case(W4A8, (64, 16), 32), library, "DQX_KERNEL")


def test_weights_that_are_no_constants_are_refused(library: Path) -> None:
    assert_refused(some_case(W4A8, (64, 16), 32), library, "constants", constant=False)


def test_tensors_that_do_not_fit_are_refused(library: Path) -> None:
    case, channel = (some_case(op, (64, 16), 32) for op in (W4A8, CHANNEL))
    (weight,), (stepped,) = case.weights, channel.weights
    one_row, of_int32 = np.ones((1, 16), np.int8), np.ones((2, 16), np.int32)
    wrong = {
        r"16 scales do not fit a weight \(64, 16\) in groups of 32": replace(
            case, weights=(Weight(weight.codes, weight.scales[:1]),)
        ),
        "in groups of 0": replace(case, group=0),
        "bias does not fit": replace(case, bias=case.bias[1:]),
        "steps do not fit": replace(channel, weights=(replace(stepped, steps=one_row),)),
        "steps have to be int8": replace(
            channel, weights=(replace(stepped, steps=cast(Any, of_int32)),)
        ),
        "fp32 or fp16": replace(case, bias=cast(Any, case.bias.astype(np.float64))),
    }
    for says, one in wrong.items():
        assert_refused(one, library, says)


def test_codes_of_another_type_are_refused(library: Path) -> None:
    model = onnx.load_from_string(some_case(W8A8, (64, 16), 32).model())
    model.graph.node[0].op_type = W4A8.name
    with pytest.raises(Exception, match="codes are of another type"):
        open_session(model.SerializeToString(), library)


@pytest.mark.parametrize("group", [-64, 0, 48, 128])
def test_activation_groups_have_to_divide(library: Path, group: int) -> None:
    case = some_case(W4A8, (64, 16), 32)
    assert_refused(replace(case, activation_group=group), library, "activation_group")


def test_gate_and_up_of_different_shapes_are_refused(library: Path) -> None:
    case, other = (some_case(GATED, (64, width), 32) for width in (16, 17))
    mixed = replace(case, weights=(case.weights[0], other.weights[1]))
    assert_refused(mixed, library, "differ in shape")


def test_activations_of_another_depth_are_refused(library: Path) -> None:
    case = some_case(W4A8, (64, 16), 32)
    model = onnx.load_from_string(case.model())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "K"
    session = open_session(model.SerializeToString(), library)
    with pytest.raises(Exception, match="do not fit the weight"):
        run(session, np.zeros((3, 65), np.float32))
