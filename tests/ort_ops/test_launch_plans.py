"""What a plan may change of a linear, and what not."""

import ctypes

import numpy as np
import pytest

from ort_ops.linear_w4a8.launch import PATHS, Plan
from ort_ops.linear_w4a8.op import OPS, LinearOp
from tests.launched import Launched, host_compiler
from tests.launched_linear import INVALID_VALUE, assert_right, call_of, in_kind, launch, output
from tests.linear_case import random_case, random_rows

INTEGERS = [op for op in OPS if op.activation_bits <= 8]
pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")


@pytest.mark.parametrize("op", [op for op in INTEGERS if op.channel], ids=lambda op: op.name)
def test_integers_do_not_depend_on_the_plan(linears: Launched, op: LinearOp) -> None:
    """Rows of a block and parts of the depth change no bit where a row has one scale."""
    rng = np.random.default_rng(2)
    case = random_case(rng, op, (1088, 96), 64, 1088, exact=False)
    case, x = in_kind(case, random_rows(rng, case, (37,)), "fp32")
    outputs = [
        output(linears, case, x, "fp32", plan=Plan(PATHS.index("mma8"), rows, parts))
        for rows, parts in ((16, 1), (16, 8), (32, 3), (64, 2))
    ]
    assert_right(case, x, outputs[0], "fp32")
    for y in outputs[1:]:
        np.testing.assert_array_equal(y, outputs[0])


def test_parts_have_to_have_room(linears: Launched) -> None:
    """What parts leave is bounded, whatever the GPU: 16 MiB here, in less than one part's place."""
    op = LinearOp(4, 8, channel=True)
    case = random_case(np.random.default_rng(3), op, (64, 32), 64, 64, exact=False)
    call, plan = call_of(case, 1 << 18, "fp32"), Plan(PATHS.index("mma8"), 16, 2)
    codes_and_scales = (1 << 18) * (64 + 4)
    left = linears.library.workspace(ctypes.byref(call)) - codes_and_scales
    assert left == 16 << 20 < (1 << 18) * 32 * 4
    x = np.ones((1 << 18, 64), np.float32)
    assert launch(linears, case, x, "fp32", plan=plan)[0] == INVALID_VALUE
    assert launch(linears, case, x[:3], "fp32", plan=Plan(plan.path, 16, 0))[0] == INVALID_VALUE
