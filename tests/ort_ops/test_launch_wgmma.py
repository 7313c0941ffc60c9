"""Channel formats on products of warpgroups (SM 90), compiled for the host: the reference's y."""

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
    plan_of,
)
from tests.linear_case import Float32, LinearCase, forty_rows, random_case, random_rows

FORMATS = [op for op in OPS if op.channel]
GPU = 90  # compute capability, by ten, that has them
ROWS = (16, 32, 64, 128)  # of a block
pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")


@pytest.fixture(scope="module")
def launched(linears: Launched) -> Iterator[Launched]:
    if linears.library.stand_for(GPU) != GPU:
        pytest.skip("this GPU has no wgmma")
    yield linears
    linears.library.stand_for(87)


def wgmma(rows: int = 128, parts: int = 1) -> Plan:
    return Plan(PATHS.index("wgmma"), rows, parts)


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCase, Float32, Kind, Plan]:
    """Rows, depths and widths that end in the middle of a tile; more stages than there are slots.

    A tile has 16 to 128 rows and 256 outputs (128 for 8 bits), a stage 64 inputs.
    """
    op = draw(st.sampled_from(FORMATS))
    depth = 16 * draw(st.integers(1, 34))
    width = 512 // (4 * op.weight_bits) * draw(st.integers(1, 18))
    group = draw(st.sampled_from([32, 64, 96, 320]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    case = random_case(rng, op, (depth, width), group, depth, draw(st.booleans()))
    rows = draw(st.sampled_from([(0,), (1,), (15,), (33,), (2, 9), (70,), (130,)]))
    kind = draw(st.sampled_from(KINDS))
    case, x = in_kind(case, random_rows(rng, case, rows), kind)
    plan = wgmma(draw(st.sampled_from(ROWS)), draw(st.integers(1, 8)))
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
def test_it_is_what_products_of_warps_give(launched: Launched, op: LinearOp) -> None:
    """Bit by bit: sums are whole numbers, and scaled alike; in parts of the depth as well."""
    case, x = forty_rows(op)
    of_warps = output(launched, case, x, "fp32", plan=Plan(PATHS.index("mma8"), 32, 1))
    for rows in ROWS:
        for parts in (1, 3):
            y = output(launched, case, x, "fp32", plan=wgmma(rows, parts))
            assert np.array_equal(y, of_warps), (rows, parts)


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_every_pair_of_codes_is_multiplied(launched: Launched, op: LinearOp) -> None:
    """Weight (k, n) meets input k and output n alone: a code of one in a row of zeros shows it."""
    op = replace(op, gated=False)
    case, _ = forty_rows(op, (128, 64), 64)
    case = replace(case, step=1 / 7, bias=np.zeros_like(case.bias))
    x = np.diag(np.linspace(1, 2, 128)).astype(np.float32)
    assert_right(case, x, output(launched, case, x, "fp32", plan=wgmma()), "fp32")


@pytest.mark.parametrize(
    "op", [op for op in FORMATS if op.weight_bits == 4], ids=lambda op: op.name
)
def test_any_step_of_any_code(launched: Launched, op: LinearOp) -> None:
    """Codes are multiplied by their steps two at a time: none changes its neighbour's."""
    case, x = forty_rows(op, (512, 64), 32)
    codes = np.resize(np.arange(-8, 8, dtype=np.int8), (512, 64))
    steps = np.resize(np.arange(-128, 128, dtype=np.int8), (16, 64))
    case = replace(
        case, weights=tuple(replace(each, codes=codes, steps=steps) for each in case.weights)
    )
    mma8 = output(launched, case, x, "fp32", plan=Plan(PATHS.index("mma8"), 32, 1))
    assert np.array_equal(output(launched, case, x, "fp32", plan=wgmma(64)), mma8)


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_not_a_number_stays_in_its_row(launched: Launched, op: LinearOp) -> None:
    case, x = forty_rows(op)
    broken = x.copy()
    broken[3, 7], broken[15, 0], broken[15, 199] = np.nan, -np.inf, np.nan
    y = output(launched, case, broken, "fp32", plan=wgmma(64))
    assert np.isnan(y[[3, 15]]).all()
    others = np.delete(np.arange(40), [3, 15])
    plain = output(launched, case, x, "fp32", plan=wgmma(64))
    np.testing.assert_array_equal(y[others], plain[others])


def test_no_other_gpu_has_it(launched: Launched) -> None:
    """Newer ones neither: their plans are those of the GPU before."""
    case, x = forty_rows(LinearOp(4, 8, channel=True))
    for gpu in (80, 87, 89, 90, 100, 110, 120):
        if launched.library.stand_for(gpu) != gpu:
            continue
        path = plan_of(launched, call_of(case, 512, "fp16")).path
        assert PATHS[path] == ("wgmma" if gpu == GPU else "mma8")
        error, _ = launch(launched, case, x, "fp32", plan=wgmma())
        assert error == (0 if gpu == GPU else INVALID_VALUE)
    launched.library.stand_for(GPU)


@pytest.mark.parametrize(
    ("op", "shape", "group"),
    [
        (LinearOp(4, 8), (128, 64), 64),
        (LinearOp(8, 8), (128, 64), 64),
        (
            LinearOp(4, 8, channel=True),
            (128, 48),
            64,
        ),  # a row of weights is no multiple of 16 bytes
        (LinearOp(4, 8, channel=True), (72, 64), 64),  # nor one of inputs
        (LinearOp(4, 8, channel=True), (128, 64), 48),  # two groups in a slice
    ],
)
def test_what_does_not_fit_is_refused(
    launched: Launched, op: LinearOp, shape: tuple[int, int], group: int
) -> None:
    case, x = forty_rows(op, shape, group)
    assert launch(launched, case, x, "fp32", plan=wgmma())[0] == INVALID_VALUE


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_rows_do_not_depend_on_others(launched: Launched, op: LinearOp) -> None:
    case, x = forty_rows(op)
    all_rows = output(launched, case, x, "fp32", plan=wgmma())
    np.testing.assert_array_equal(
        output(launched, case, x[5:6], "fp32", plan=wgmma(16)), all_rows[5:6]
    )
