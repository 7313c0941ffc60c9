"""Linears three ways: the twin in Triton, the numpy reference, the CUDA launcher on the host."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.launch import Call
from ort_ops.linear_w4a8.op import LinearOp
from tests.launched import Launched, host_compiler
from tests.linear_case import LinearCase, random_case, random_rows
from tests.ort_ops.test_launch_linear import (
    FORMATS,
    SOURCES,
    Floats,
    assert_right,
    in_halves,
    output,
)

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched | None:
    """The launcher, where there is a compiler."""
    if host_compiler() is None:
        return None
    made = Launched.compiled(tmp_path_factory.mktemp("linear"), SOURCES)
    made.library.workspace.restype = made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def twin_output(case: LinearCase, x: Floats, device: str) -> Floats:
    """y (M, N) of the twin."""
    from tools.triton_twins.linear import LinearTwin, TwinWeight

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    kind = np.float16 if case.half else np.float32
    weights = [
        TwinWeight(
            put(pack_int4(w.codes) if case.op.weight_bits == 4 else w.codes),
            put(w.scales.astype(kind)),
            None if w.steps is None else put(w.steps),
        )
        for w in case.weights
    ]
    twin = LinearTwin(case.op, *case.shape, case.group, case.activation_group, case.step)
    bias = None if case.op.gated else put(case.bias.astype(x.dtype))
    y: Floats = twin(put(x), weights, bias).cpu().numpy()
    return y


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCase, Floats]:
    """Groups of weights and of activations that cross, ragged depths, odd widths, both types."""
    op = draw(st.sampled_from(FORMATS))
    along = draw(st.sampled_from([24, 32, 64, 96]))
    depth = along * draw(st.integers(1, max(1, 200 // along)))
    width = draw(st.integers(1, 140))
    group = draw(st.sampled_from([16, 32, 64, 128, depth]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    case = random_case(rng, op, (depth, width), group, along, draw(st.booleans()))
    x = random_rows(rng, case, (draw(st.sampled_from([0, 1, 3, 33, 70])),))
    return in_halves(case, x) if draw(st.booleans()) else (case, x)


@settings(max_examples=40)
@given(pair=cases())
def test_twin_reference_and_launcher_agree(
    device: str, launched: Launched | None, pair: tuple[LinearCase, Floats]
) -> None:
    """Within the bound of fp32; it is 0 where all numbers are exact, so all three are then one."""
    case, x = pair
    assert_right(case, x, twin_output(case, x, device))
    if launched is not None:
        assert_right(case, x, output(launched, case, x))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("op", FORMATS, ids=lambda op: op.name)
def test_each_format(device: str, op: LinearOp, kind: type[np.floating]) -> None:
    for exact in (True, False):
        rng = np.random.default_rng(0)
        case = random_case(rng, op, (96, 70), 32, 96, exact)
        x = random_rows(rng, case, (35,))
        case, x = in_halves(case, x) if kind == np.float16 else (case, x)
        assert_right(case, x, twin_output(case, x, device))


def test_a_code_off_by_one_would_show(device: str) -> None:
    rng = np.random.default_rng(0)
    case = random_case(rng, LinearOp(4, 8), (96, 70), 32, 96, exact=True)
    x = random_rows(rng, case, (35,))
    y = twin_output(case, x, device)
    case.weights[0].codes[50, 3] ^= 1
    with pytest.raises(AssertionError, match="is not between"):
        assert_right(case, x, y)
