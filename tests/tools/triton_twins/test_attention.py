"""Attention three ways: the twin in Triton, the numpy reference, the CUDA launcher on the host."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.attention.launch import Call
from tests.attention_case import AttentionCase, AttentionShape, Floats, random_case
from tests.launched import Launched, host_compiler
from tests.ort_ops.test_launch_attention import (
    SOURCES,
    TOPS,
    assert_right,
    output,
    some_case,
)

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched | None:
    """The launcher, where there is a compiler."""
    if host_compiler() is None:
        return None
    made = Launched.compiled(tmp_path_factory, SOURCES)
    made.library.workspace.restype = made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def twin_output(case: AttentionCase, device: str) -> Floats:
    from tools.triton_twins.attention import AttentionTwin

    inputs = [torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in case.inputs]
    y: Floats = AttentionTwin(case.heads, case.tops)(*inputs).cpu().numpy()
    return y


@st.composite
def cases(draw: st.DrawFn) -> AttentionCase:
    """Full and ragged tiles of 64 keys, widths that are no powers of two, grouped heads."""
    kv_heads = draw(st.integers(1, 2))
    shape = AttentionShape(
        rows=draw(st.integers(1, 2)),
        queries=draw(st.sampled_from([1, 2, 33, 70])),
        keys=draw(st.sampled_from([1, 2, 63, 64, 65, 130, 200])),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        width=draw(st.sampled_from([4, 20, 32, 64, 80, 128])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random_case(rng, shape, draw(TOPS), draw(st.booleans()))


@settings(max_examples=50)
@given(case=cases())
def test_twin_reference_and_launcher_agree(
    device: str, launched: Launched | None, case: AttentionCase
) -> None:
    assert_right(case, twin_output(case, device))
    if launched is not None:
        assert_right(case, output(launched, case))


@pytest.mark.parametrize("half", [False, True])
def test_nearly_all_codes_are_certain(device: str, half: bool) -> None:
    """So the bounds are no wider than they have to be, and one wrong code would show."""
    case = some_case(half=half)
    y = twin_output(case, device)
    assert assert_right(case, y) > 0.98
    case.v[0, 0, 5] += 3 * case.v_scale.reshape(2, -1)[0]
    with pytest.raises(AssertionError, match="is not between"):
        assert_right(case, y)
