"""The launcher of quantized linears, compiled for the host, computes what the reference does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.linear_w4a8.op import LEAST_SCALE, OPS, LinearOp, activation_codes
from tests.launched import Launched, host_compiler
from tests.launched_linear import KINDS, Kind, assert_right, in_kind, output, rounded
from tests.linear_case import Float32, LinearCase, forty_rows, random_case, random_rows

FORMATS = [op for op in OPS if op.activation_bits <= 8]  # of 16 bits: test_launch_halves.py
pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCase, Float32, Kind]:
    """Ragged depths, odd widths, groups that cross those of activations, 0 … 70 rows, all types.

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
    kind = draw(st.sampled_from(KINDS))
    return *in_kind(case, random_rows(rng, case, rows), kind), kind


@settings(max_examples=100)
@given(drawn=cases())
def test_it_is_the_reference(linears: Launched, drawn: tuple[LinearCase, Float32, Kind]) -> None:
    """Where all numbers are exact the bound is 0, and one code off by one would show."""
    case, x, kind = drawn
    assert_right(case, x, output(linears, case, x, kind), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_each_format_exactly(linears: Launched, op: LinearOp, kind: Kind) -> None:
    """Halves between two codes go to the even one, and codes below and above are clipped."""
    rng = np.random.default_rng(0)
    case = random_case(rng, replace(op, gated=False), (96, 71), 32, 96, exact=True)
    case, x = in_kind(case, random_rows(rng, case, (35,)), kind)
    assert (case.bound(x, body=False) == 0).mean() > 0.99
    assert_right(case, x, output(linears, case, x, kind), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_small_rows_keep_the_least_scale(linears: Launched, kind: Kind) -> None:
    """Below 2^-24 a scale would let an input that is nearly nothing use all codes."""
    rng = np.random.default_rng(0)
    case = random_case(rng, LinearOp(4, 8), (96, 71), 32, 32, exact=False)
    case = replace(case, bias=np.zeros_like(case.bias))
    x = rounded(random_rows(rng, case, (5,)) * 2.0**-20, kind)
    _, scales = activation_codes(x, case.op, 32, case.step)
    assert (scales == LEAST_SCALE).mean() > 0.5
    assert_right(case, x, output(linears, case, x, kind), kind)


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_rows_do_not_depend_on_their_neighbours(linears: Launched, op: LinearOp) -> None:
    case, x = forty_rows(op, (200, 67), 64)
    together = output(linears, case, x, "fp32")
    for row in (0, 7, 31, 39):
        alone = output(linears, case, x[row : row + 1], "fp32")
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_not_a_number_stays_in_its_row(linears: Launched, op: LinearOp) -> None:
    case, x = forty_rows(op, (200, 67), 64)
    broken = x.copy()
    broken[3, 7], broken[15, 0], broken[15, 199] = np.nan, -np.inf, np.nan
    broken[20, 100] = np.inf
    y = output(linears, case, broken, "fp32")
    assert np.isnan(y[[3, 15]]).all() and not np.isfinite(y[20]).any()
    others = np.delete(np.arange(40), [3, 15, 20])
    whole = output(linears, case, x, "fp32")
    np.testing.assert_array_equal(y[others], whole[others])


def test_a_linear_without_bias(linears: Launched) -> None:
    case, x = forty_rows(LinearOp(4, 8), (200, 67), 64)
    plain = replace(case, bias=np.zeros_like(case.bias))
    assert_right(plain, x, output(linears, case, x, "fp32", bias=False), "fp32")
    with pytest.raises(AssertionError, match="is not between"):
        assert_right(plain, x, output(linears, case, x, "fp32"), "fp32")


TILED = [  # rows, depth, width, group: whole tiles, ragged ones, and parts of the depth
    (0, 64, 32, 32), (1, 64, 32, 32),
    (5, 576, 64, 64), (17, 1024, 320, 128), (33, 80, 96, 64), (70, 1072, 288, 32),
    (130, 96, 64, 96), (64, 512, 256, 128),
]  # fmt: skip


@pytest.mark.parametrize("shape", TILED, ids=str)
@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_tensor_cores_add_the_same(
    linears: Launched, op: LinearOp, shape: tuple[int, int, int, int]
) -> None:
    """Shapes that the tensor cores take: exactly, and within the bound of random numbers."""
    rows, depth, width, group = shape
    along = next(n for n in (64, 32, depth) if depth % n == 0)
    for seed, kind in enumerate(KINDS):
        rng = np.random.default_rng(seed)
        case = random_case(rng, op, (depth, width), group, along, exact=kind != "fp16")
        case, x = in_kind(case, random_rows(rng, case, (rows,)), kind)
        assert_right(case, x, output(linears, case, x, kind), kind)
