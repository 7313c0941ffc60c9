"""4-bit inputs by 4-bit weights on INT4 tensor cores, compiled for the host: the reference's y."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.linear_w4a8.launch import PATHS, Plan
from ort_ops.linear_w4a8.op import OPS, LinearOp
from tests.launched import Launched, host_compiler
from tests.launched_linear import (
    INVALID_VALUE,
    KINDS,
    Kind,
    assert_right,
    call_of,
    in_kind,
    launch,
    output,
    path_of,
)
from tests.linear_case import Float32, LinearCase, forty_rows, random_case, random_rows

FORMATS = [op for op in OPS if (op.weight_bits, op.activation_bits) == (4, 4)]
WITH_INT4 = (80, 86, 87, 89)  # compute capabilities, by ten
pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")


@pytest.fixture(scope="module")
def launched(linears: Launched) -> Launched:
    if linears.library.stand_for(87) not in WITH_INT4:
        pytest.skip("this GPU has no INT4 tensor cores")
    return linears


def int4(rows: int = 32, parts: int = 1) -> Plan:
    return Plan(PATHS.index("mma4"), rows, parts)


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCase, Float32, Kind, Plan]:
    """Rows that end in the middle of a tile, depths and widths likewise, groups of several stages.

    A tile has 16 or 32 rows and 256 outputs, a stage 64 inputs.
    """
    op = draw(st.sampled_from(FORMATS))
    along = draw(st.sampled_from([64, 128, 192]))
    depth = draw(st.sampled_from([32, 96, 160, along * draw(st.integers(1, 5))]))
    width = 32 * draw(st.integers(1, 18))
    group = draw(st.sampled_from([64, 128, 320, depth]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    activation_group = along if depth % along == 0 else depth
    case = random_case(rng, op, (depth, width), group, activation_group, draw(st.booleans()))
    rows = draw(st.sampled_from([(0,), (1,), (15,), (33,), (2, 9), (70,)]))
    kind = draw(st.sampled_from(KINDS))
    case, x = in_kind(case, random_rows(rng, case, rows), kind)
    plan = int4(draw(st.sampled_from([16, 32])), draw(st.integers(1, 8)))
    return case, x, kind, plan


@settings(max_examples=60)
@given(drawn=cases())
def test_it_is_the_reference(
    launched: Launched, drawn: tuple[LinearCase, Float32, Kind, Plan]
) -> None:
    """Where all numbers are exact the bound is 0, and one code off by one would show."""
    case, x, kind, plan = drawn
    assert_right(case, x, output(launched, case, x, kind, plan=plan), kind)


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_it_is_what_codes_in_bytes_give(launched: Launched, op: LinearOp) -> None:
    """Bit by bit: sums of a run are whole numbers, and runs are added in the same order."""
    case, x = forty_rows(op, along=64)
    for rows in (16, 32):
        bytes_too = output(launched, case, x, "fp32", plan=Plan(PATHS.index("mma8"), rows, 1))
        assert np.array_equal(output(launched, case, x, "fp32", plan=int4(rows)), bytes_too)


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_every_pair_of_codes_is_multiplied(launched: Launched, op: LinearOp) -> None:
    """Weight (k, n) meets input k and output n alone: a code of one in a row of zeros shows it."""
    op = replace(op, gated=False)
    case, _ = forty_rows(op, (128, 64), 64)
    case = replace(case, step=1 / 7, bias=np.zeros_like(case.bias))
    x = np.diag(np.linspace(1, 2, 128)).astype(np.float32)
    assert_right(case, x, output(launched, case, x, "fp32", plan=int4()), "fp32")


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_not_a_number_stays_in_its_row(launched: Launched, op: LinearOp) -> None:
    case, x = forty_rows(op, along=64)
    broken = x.copy()
    broken[3, 7], broken[15, 0], broken[15, 199] = np.nan, -np.inf, np.nan
    y = output(launched, case, broken, "fp32", plan=int4())
    assert np.isnan(y[[3, 15]]).all()
    others = np.delete(np.arange(40), [3, 15])
    plain = output(launched, case, x, "fp32", plan=int4())
    np.testing.assert_array_equal(y[others], plain[others])


@pytest.fixture
def each_gpu(linears: Launched) -> Iterator[list[int]]:
    """Compute capabilities, by ten, that can be asked for."""
    every = (75, *WITH_INT4, 90, 100, 110, 120)
    yield [gpu for gpu in every if linears.library.stand_for(gpu) == gpu]
    linears.library.stand_for(87)


def test_gpus_that_have_it_use_it(linears: Launched, each_gpu: list[int]) -> None:
    case, x = forty_rows(LinearOp(4, 4, channel=True), along=64)
    for gpu in each_gpu:
        linears.library.stand_for(gpu)
        fits = gpu in WITH_INT4
        others = "wgmma" if gpu == 90 else "mma8"
        assert path_of(linears, call_of(case, 40, "fp16")) == ("mma4" if fits else others)
        error, _ = launch(linears, case, x, "fp32", plan=int4())
        assert error == (0 if fits else INVALID_VALUE)


@pytest.mark.parametrize(
    ("op", "shape", "group", "along"),
    [
        (LinearOp(4, 8), (128, 64), 64, 64),
        (LinearOp(8, 4), (128, 64), 64, 64),
        (LinearOp(4, 4), (128, 48), 64, 64),  # a row of weights is no multiple of 16 bytes
        (LinearOp(4, 4), (80, 64), 80, 80),  # nor one of inputs
        (LinearOp(4, 4), (128, 64), 32, 64),  # two groups in a stage
        (LinearOp(4, 4), (128, 64), 64, 32),
        (LinearOp(4, 4, channel=True), (128, 64), 96, 128),
    ],
)
def test_what_does_not_fit_is_refused(
    launched: Launched, op: LinearOp, shape: tuple[int, int], group: int, along: int
) -> None:
    case, x = forty_rows(op, shape, group, along)
    error, _ = launch(launched, case, x, "fp32", plan=int4())
    assert error == INVALID_VALUE
    assert path_of(launched, call_of(case, 40, "fp32")) != "mma4"
    assert_right(case, x, output(launched, case, x, "fp32"), "fp32")


def test_codes_may_begin_anywhere(launched: Launched) -> None:
    """Where they do not at a multiple of 16 bytes, another path takes them."""
    case, x = forty_rows(LinearOp(4, 4), along=64)
    error, _ = launch(launched, case, x, "fp32", plan=int4(), offset=1)
    assert error == INVALID_VALUE
    error, y = launch(launched, case, x, "fp32", offset=1)
    assert error == 0
    assert_right(case, x, y, "fp32")
