"""Inputs in halves by 4- and 8-bit weights, compiled for the host: products of x as it is."""

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
    plan_of,
)
from tests.linear_case import Float32, LinearCase, random_case, random_rows

FORMATS = [op for op in OPS if op.activation_bits == 16]
HALVES: tuple[Kind, ...] = ("fp16", "bf16")
pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")


def halves(rows: int = 8, parts: int = 1) -> Plan:
    return Plan(PATHS.index("halves"), rows, parts)


def made(
    seed: int, op: LinearOp, shape: tuple[int, int], group: int, exact: bool, kind: Kind,
    rows: tuple[int, ...],
) -> tuple[LinearCase, Float32]:  # fmt: skip
    """A case, and x as `kind` has it."""
    rng = np.random.default_rng(seed)
    case = replace(random_case(rng, op, shape, group, shape[0], exact), kept=True)
    return in_kind(case, random_rows(rng, case, rows), kind)


@st.composite
def tiled(draw: st.DrawFn) -> tuple[LinearCase, Float32, Kind, Plan]:
    """What tensor cores take: ragged rows, depths and widths; groups of a slice and of several.

    A tile has 8, 16 or 32 rows and 256 or 128 outputs, a stage two slices of 32 inputs.
    """
    op, kind = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(HALVES))
    depth = 8 * draw(st.integers(1, 72))
    width = 128 // op.weight_bits * draw(st.integers(1, 18))
    group = draw(st.sampled_from([32, 64, 96, 128, depth]))
    rows = draw(st.sampled_from([(0,), (1,), (8,), (9,), (2, 9), (70,)]))
    seed, exact = draw(st.integers(0, 2**32)), draw(st.booleans())
    plan = halves(draw(st.sampled_from([8, 16, 32])), draw(st.integers(1, 8)))
    return *made(seed, op, (depth, width), group, exact, kind, rows), kind, plan


@settings(max_examples=80)
@given(drawn=tiled())
def test_tensor_cores_multiply_x_as_it_is(
    linears: Launched, drawn: tuple[LinearCase, Float32, Kind, Plan]
) -> None:
    """Where all numbers are exact the bound is 0, and one code off by one would show."""
    case, x, kind, plan = drawn
    assert_right(case, x, output(linears, case, x, kind, plan=plan), kind)


@st.composite
def of_any_shape(draw: st.DrawFn) -> tuple[LinearCase, Float32, Kind]:
    op, kind = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(KINDS))
    shape = draw(st.integers(1, 150)), draw(st.integers(1, 140))
    group = draw(st.sampled_from([16, 32, 48, shape[0]]))
    rows = draw(st.sampled_from([(0,), (1,), (33,), (2, 3), (0, 2)]))
    seed, exact = draw(st.integers(0, 2**32)), draw(st.booleans())
    return *made(seed, op, shape, group, exact, kind, rows), kind


@settings(max_examples=50)
@given(drawn=of_any_shape())
def test_any_shape_is_multiplied(
    linears: Launched, drawn: tuple[LinearCase, Float32, Kind]
) -> None:
    case, x, kind = drawn
    assert_right(case, x, output(linears, case, x, kind), kind)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_is_widened_exactly(linears: Launched, bits: int, kind: Kind) -> None:
    """Each code stands in each place of an octet, for each input of a slice; x picks one input."""
    op = LinearOp(bits, 16)  # type: ignore[arg-type]
    top = 2 ** (bits - 1)
    case, _ = made(0, op, (64, 512), 32, True, kind, (1,))
    codes = (np.arange(64)[:, None] * 8 + np.arange(512)) % (2 * top) - top
    weight = replace(case.weights[0], codes=codes.astype(np.int8))
    case = replace(case, weights=(weight,), bias=np.zeros_like(case.bias))
    x = np.eye(64, dtype=np.float32)
    wanted = codes * weight.scales.repeat(32, axis=0)
    y = output(linears, case, x, kind, plan=halves(32))
    np.testing.assert_array_equal(y, wanted)
    assert {*codes.ravel().tolist()} == {*range(-top, top)}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_rows_do_not_depend_on_their_neighbours(
    linears: Launched, op: LinearOp, kind: Kind
) -> None:
    """In tiles of 8 rows and of more, with as many parts of the depth."""
    case, x = made(1, op, (448, 288), 128, False, kind, (40,))
    together = output(linears, case, x, kind, plan=halves(32, 3))
    for rows in (slice(0, 1), slice(7, 9), slice(33, 40)):
        alone = output(linears, case, x[rows], kind, plan=halves(8, 3))
        np.testing.assert_array_equal(alone, together[rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_not_a_number_stays_in_its_row(linears: Launched, op: LinearOp, kind: Kind) -> None:
    case, x = made(1, op, (200, 64), 64, False, kind, (40,))
    broken = x.copy()
    broken[3, 7], broken[15, 0], broken[15, 199] = np.nan, -np.inf, np.nan
    y = output(linears, case, broken, kind)
    assert np.isnan(y[[3, 15]]).all()
    others = np.delete(np.arange(40), [3, 15])
    np.testing.assert_array_equal(y[others], output(linears, case, x, kind)[others])


@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_attributes_of_rounding_say_nothing(linears: Launched, op: LinearOp) -> None:
    case, x = made(2, op, (96, 64), 32, False, "fp16", (5,))
    other = replace(case, step=0.5, activation_group=8)
    np.testing.assert_array_equal(
        output(linears, case, x, "fp16"), output(linears, other, x, "fp16")
    )


def test_a_bias_may_be_left_out(linears: Launched) -> None:
    case, x = made(3, LinearOp(4, 16), (96, 64), 32, False, "fp16", (5,))
    plain = replace(case, bias=np.zeros_like(case.bias))
    assert_right(plain, x, output(linears, case, x, "fp16", bias=False), "fp16")


def test_few_rows_divide_the_depth(linears: Launched) -> None:
    case, x = made(4, LinearOp(8, 16), (1024, 144), 64, False, "bf16", (3,))
    plan = plan_of(linears, call_of(case, 3, "bf16"))
    assert (PATHS[plan.path], plan.rows) == ("halves", 8)
    assert linears.gpu or plan.parts == 4
    assert_right(case, x, output(linears, case, x, "bf16"), "bf16")


@pytest.mark.parametrize(
    ("op", "shape", "group", "kind"),
    [
        (LinearOp(4, 16), (64, 64), 64, "fp32"),
        (LinearOp(4, 16), (60, 64), 60, "fp16"),  # a row of x is no multiple of 16 bytes
        (LinearOp(4, 16), (64, 48), 32, "fp16"),  # nor one of weights
        (LinearOp(8, 16), (64, 40), 32, "bf16"),
        (LinearOp(4, 16), (64, 64), 16, "fp16"),  # two groups in a slice
        (LinearOp(4, 8), (64, 64), 32, "fp16"),
    ],
)
def test_what_does_not_fit_is_refused(
    linears: Launched, op: LinearOp, shape: tuple[int, int], group: int, kind: Kind
) -> None:
    case, x = made(5, op, shape, group, False, kind, (9,))
    case = replace(case, kept=op.activation_bits == 16)
    assert launch(linears, case, x, kind, plan=halves())[0] == INVALID_VALUE
    assert path_of(linears, call_of(case, 9, kind)) != "halves"
    assert_right(case, x, output(linears, case, x, kind), kind)


@pytest.mark.parametrize("path", ["dp4a", "mma8", "mma4"])
def test_paths_of_integers_refuse_it(linears: Launched, path: str) -> None:
    case, x = made(6, LinearOp(4, 16), (64, 64), 64, False, "fp16", (9,))
    plan = Plan(PATHS.index(path), 32, 1)
    assert launch(linears, case, x, "fp16", plan=plan)[0] == INVALID_VALUE


def test_codes_may_begin_anywhere(linears: Launched) -> None:
    """Where they do not at a multiple of 16 bytes, another path takes them."""
    case, x = made(7, LinearOp(8, 16), (64, 64), 64, False, "fp16", (9,))
    assert launch(linears, case, x, "fp16", plan=halves(), offset=1)[0] == INVALID_VALUE
    error, y = launch(linears, case, x, "fp16", offset=1)
    assert error == 0
    assert_right(case, x, y, "fp16")
