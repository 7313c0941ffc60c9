"""The launcher of quantized linears, compiled for the host, computes what the reference does."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.launch import Call, WeightPointers
from ort_ops.linear_w4a8.op import LEAST_SCALE, OPS, LinearOp, Weight, activation_codes
from tests.launched import Buffer, Launched, host_compiler, kernel_sources
from tests.linear_case import LinearCase, random_case, random_rows

SOURCES = (*kernel_sources("linear_w4a8"), "launch_linear.cc")
FORMATS = [op for op in OPS if op.activation_bits <= 8]  # more have no kernel for GPUs
pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")

Floats = npt.NDArray[np.floating[Any]]


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    made = Launched.compiled(tmp_path_factory.mktemp("linear"), SOURCES, request.param == "gpu")
    made.library.workspace.restype = made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def output(launched: Launched, case: LinearCase, x: Floats, bias: bool = True) -> Floats:
    """y (…, N) of x (…, K), fp16 if x is."""
    depth, width = case.shape
    call = Call(
        x.size // depth, depth, width, case.group, case.activation_group, case.step,
        case.op.weight_bits, case.op.activation_bits, case.op.channel, case.op.gated,
        x.dtype == np.float16, case.half,
    )  # fmt: skip
    tensors = [_tensors(launched, case, weight) for weight in case.weights]
    pointers = [[tensor and tensor.pointer for tensor in each] for each in tensors]
    weights = (WeightPointers * len(tensors))(*(WeightPointers(*each) for each in pointers))
    given, added = launched.put(x), launched.put(case.bias.astype(x.dtype))
    y = launched.poisoned((*x.shape[:-1], width), x.dtype)
    room = launched.poisoned((launched.library.workspace(ctypes.byref(call)),), np.uint8)
    error = launched.library.launch(
        ctypes.byref(call), ctypes.c_void_p(given.pointer), weights,
        ctypes.c_void_p(added.pointer if bias and not case.op.gated else None),
        ctypes.c_void_p(y.pointer), ctypes.c_void_p(room.pointer),
    )  # fmt: skip
    assert error == 0
    return y.array()


def _tensors(launched: Launched, case: LinearCase, weight: Weight) -> Sequence[Buffer | None]:
    codes = weight.codes if case.op.weight_bits == 8 else pack_int4(weight.codes)
    scales = weight.scales.astype(np.float16 if case.half else np.float32)
    steps = None if weight.steps is None else launched.put(weight.steps)
    return launched.put(codes), launched.put(scales), steps


def in_halves(case: LinearCase, x: Floats) -> tuple[LinearCase, Floats]:
    """The case with a bias that fp16 holds, and x in fp16."""
    return replace(case, bias=case.bias.astype(np.float16).astype(np.float32)), x.astype(np.float16)


def bounds(case: LinearCase, x: Floats) -> tuple[Floats, Floats]:
    """The least and the largest y that is right.

    In fp32 the sum keeps the bound of kernels on CPUs. Rounding to the type of y, once, keeps
    order: what was between two numbers is then between both of them rounded.
    """
    wide = x.astype(np.float32)
    wanted, bound = case.expected(wide), case.bound(wide, body=False)
    with np.errstate(over="ignore"):  # large outputs are infinite in fp16
        return (wanted - bound).astype(x.dtype), (wanted + bound).astype(x.dtype)


def assert_right(case: LinearCase, x: Floats, y: Floats) -> None:
    low, high = bounds(case, x)
    assert y.shape == low.shape and y.dtype == low.dtype
    wrong = ~((low <= y) & (y <= high))
    assert not wrong.any(), f"{y[wrong]} is not between {low[wrong]} and {high[wrong]}"


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCase, Floats]:
    """Ragged depths, odd widths, groups that cross those of activations, 0 … 70 rows, both types.

    A tile has 32 rows, 64 outputs and 32 inputs.
    """
    op = draw(st.sampled_from(FORMATS))
    activation_group = draw(st.sampled_from([1, 5, 8, 24, 32, 64, 96]))
    depth = activation_group * draw(st.integers(1, max(1, 200 // activation_group)))
    width = draw(st.integers(1, 140))
    group = draw(st.sampled_from([16, 32, 64, 128, depth]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    case = random_case(rng, op, (depth, width), group, activation_group, draw(st.booleans()))
    rows = draw(st.sampled_from([(0,), (1,), (3,), (33,), (70,), (2, 3), (0, 2)]))
    x = random_rows(rng, case, rows)
    return in_halves(case, x) if draw(st.booleans()) else (case, x)


@settings(max_examples=100)
@given(pair=cases())
def test_it_is_the_reference(launched: Launched, pair: tuple[LinearCase, Floats]) -> None:
    """Where all numbers are exact the bound is 0, and one code off by one would show."""
    case, x = pair
    assert_right(case, x, output(launched, case, x))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_each_format_exactly(launched: Launched, op: LinearOp, kind: type[Any]) -> None:
    """Halves between two codes go to the even one, and codes below and above are clipped."""
    rng = np.random.default_rng(0)
    case = random_case(rng, replace(op, gated=False), (96, 71), 32, 96, exact=True)
    x = random_rows(rng, case, (35,))
    case, x = in_halves(case, x) if kind == np.float16 else (case, x)
    low, high = bounds(case, x)
    assert (low == high).mean() > 0.99
    assert_right(case, x, output(launched, case, x))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_small_rows_keep_the_least_scale(launched: Launched, kind: type[Any]) -> None:
    """Below 2^-24 a scale would let an input that is nearly nothing use all codes."""
    rng = np.random.default_rng(0)
    case = random_case(rng, LinearOp(4, 8), (96, 71), 32, 32, exact=False)
    case = replace(case, bias=np.zeros_like(case.bias))
    x = (random_rows(rng, case, (5,)) * 2.0**-20).astype(kind)
    _, scales = activation_codes(x.astype(np.float32), case.op, 32, case.step)
    assert (scales == LEAST_SCALE).mean() > 0.5
    assert_right(case, x, output(launched, case, x))


def some_case(op: LinearOp) -> tuple[LinearCase, Floats]:
    rng = np.random.default_rng(1)
    case = random_case(rng, op, (200, 67), 64, 200, exact=False)
    return case, random_rows(rng, case, (40,))


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_rows_do_not_depend_on_their_neighbours(launched: Launched, op: LinearOp) -> None:
    case, x = some_case(op)
    together = output(launched, case, x)
    for row in (0, 7, 31, 39):
        np.testing.assert_array_equal(output(launched, case, x[row : row + 1])[0], together[row])


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_not_a_number_stays_in_its_row(launched: Launched, op: LinearOp) -> None:
    case, x = some_case(op)
    broken = x.copy()
    broken[3, 7], broken[15, 0], broken[15, 199] = np.nan, -np.inf, np.nan
    broken[20, 100] = np.inf
    y = output(launched, case, broken)
    assert np.isnan(y[[3, 15]]).all() and not np.isfinite(y[20]).any()
    others = np.delete(np.arange(40), [3, 15, 20])
    np.testing.assert_array_equal(y[others], output(launched, case, x)[others])


def test_a_linear_without_bias(launched: Launched) -> None:
    case, x = some_case(LinearOp(4, 8))
    plain = replace(case, bias=np.zeros_like(case.bias))
    assert_right(plain, x, output(launched, case, x, bias=False))
    with pytest.raises(AssertionError, match="is not between"):
        assert_right(plain, x, output(launched, case, x))


TILED = [  # rows, depth, width, group: whole tiles, ragged ones, and parts of the depth
    (0, 64, 32, 32), (1, 64, 32, 32),
    (5, 576, 64, 64), (17, 1024, 320, 128), (33, 80, 96, 64), (70, 1072, 288, 32),
(130, 96, 64, 96), (64, 512, 256, 128),
]  # fmt: skip


@pytest.mark.parametrize("shape", TILED, ids=str)
@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_tensor_cores_add_the_same(
    launched: Launched, op: LinearOp, shape: tuple[int, int, int, int]
) -> None:
    """Shapes that the tensor cores take: exactly, and within the bound of random numbers."""
    rows, depth, width, group = shape
    along = next(n for n in (64, 32, depth) if depth % n == 0)
    for seed, exact in enumerate((True, False)):
        rng = np.random.default_rng(seed)
        case = random_case(rng, op, (depth, width), group, along, exact)
        x = random_rows(rng, case, (rows,))
        assert_right(case, x, output(launched, case, x))
        case, x = in_halves(case, x)
        assert_right(case, x, output(launched, case, x))
