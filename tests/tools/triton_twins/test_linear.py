"""Linears three ways: the twin in Triton, the numpy reference, the CUDA launcher on the host."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.op import OPS, LinearOp
from tests.launched import Array, Launched, host_compiler
from tests.launched_linear import (
    KINDS,
    Floats,
    Kind,
    assert_right,
    in_kind,
    linear_launcher,
    output,
    stored,
)
from tests.linear_case import Float32, LinearCase, random_case, random_rows

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched | None:
    """The launcher, where there is a compiler."""
    if host_compiler() is None:
        return None
    return linear_launcher(tmp_path_factory, gpu=False)


def twin_output(case: LinearCase, x: Floats, kind: Kind, device: str) -> Float32:
    """y (M, N) of the twin, x and y being `kind` to it."""
    from tools.triton_twins.linear import LinearTwin, TwinWeight

    def put(array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def floats(array: Floats) -> torch.Tensor:
        held = put(stored(array, kind))
        return held.view(torch.bfloat16) if kind == "bf16" else held

    weights = [
        TwinWeight(
            put(pack_int4(w.codes) if case.op.weight_bits == 4 else w.codes),
            put(w.scales.astype(np.float16 if case.half else np.float32)),
            None if w.steps is None else put(w.steps),
        )
        for w in case.weights
    ]
    twin = LinearTwin(case.op, *case.shape, case.group, case.activation_group, case.step)
    y = twin(floats(x), weights, None if case.op.gated else floats(case.bias))
    return np.asarray(y.float().cpu().numpy())


def made(
    rng: np.random.Generator, op: LinearOp, shape: tuple[int, int], group: int, along: int,
    exact: bool,
) -> LinearCase:  # fmt: skip
    """A case whose x is kept as it is where it has 16 bits."""
    case = random_case(rng, op, shape, group, along, exact)
    return replace(case, kept=op.activation_bits == 16)


@st.composite
def cases(draw: st.DrawFn) -> tuple[LinearCase, Float32, Kind]:
    """Groups of weights and of activations that cross, ragged depths, odd widths, all types."""
    op = draw(st.sampled_from(OPS))
    along = draw(st.sampled_from([24, 32, 64, 96]))
    depth = along * draw(st.integers(1, max(1, 200 // along)))
    width = draw(st.integers(1, 140))
    group = draw(st.sampled_from([16, 32, 64, 128, depth]))
    kind = draw(st.sampled_from(KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    case = made(rng, op, (depth, width), group, along, draw(st.booleans()))
    x = random_rows(rng, case, (draw(st.sampled_from([0, 1, 3, 33, 70])),))
    return *in_kind(case, x, kind), kind


@settings(max_examples=60)
@given(drawn=cases())
def test_twin_reference_and_launcher_agree(
    device: str, launched: Launched | None, drawn: tuple[LinearCase, Float32, Kind]
) -> None:
    """Within the bound of fp32; it is 0 where all numbers are exact, so all three are then one."""
    case, x, kind = drawn
    assert_right(case, x, twin_output(case, x, kind, device), kind)
    if launched is not None:
        assert_right(case, x, output(launched, case, x, kind), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_each_format(device: str, op: LinearOp, kind: Kind) -> None:
    for exact in (True, False):
        rng = np.random.default_rng(0)
        case = made(rng, op, (96, 70), 32, 96, exact)
        case, x = in_kind(case, random_rows(rng, case, (35,)), kind)
        assert_right(case, x, twin_output(case, x, kind, device), kind)


def test_a_code_off_by_one_would_show(device: str) -> None:
    rng = np.random.default_rng(0)
    case = random_case(rng, LinearOp(4, 8), (96, 70), 32, 96, exact=True)
    x = random_rows(rng, case, (35,))
    y = twin_output(case, x, "fp32", device)
    case.weights[0].codes[50, 3] ^= 1
    with pytest.raises(AssertionError, match="is not between"):
        assert_right(case, x, y, "fp32")
