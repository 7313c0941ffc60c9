"""Attention over a cache three ways: twin, numpy reference, and CUDA launcher on the host."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.cached_attention.launch import Call
from ort_ops.cached_attention.op import CachedForm
from tests.cached_attention_case import Array, CachedCase, CachedShape, random_case
from tests.launched import Launched, host_compiler
from tests.ort_ops.test_launch_cached_attention import SOURCES, output

pytestmark = pytest.mark.triton
FORMS = [(k_bits, v_bits) for k_bits in (8, 4) for v_bits in (8, 4, 16)]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched | None:
    """The launcher, where there is a compiler."""
    if host_compiler() is None:
        return None
    made = Launched.compiled(tmp_path_factory, SOURCES)
    made.library.workspace.restype = made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def twin_outputs(case: CachedCase, device: str) -> tuple[Array, list[Array]]:
    """y of the twin, and what it leaves in the caches of keys, scales and values."""
    from tools.triton_twins.cached_attention import CachedAttentionTwin

    x = {name: torch.from_numpy(each.copy()).to(device) for name, each in case.x.items()}
    y = CachedAttentionTwin(case.form)(x).cpu().numpy()
    return y, [x[name].cpu().numpy() for name in ("k_cache", "k_scales", "v_cache")]


def assert_right(case: CachedCase, y: Array) -> None:
    low, high, _ = case.bounds()
    wrong = ~((low <= y) & (y <= high))
    assert not wrong.any(), f"{y[wrong]} is not between {low[wrong]} and {high[wrong]}"


@st.composite
def cases(draw: st.DrawFn) -> CachedCase:
    """All formats, with and without turns, full and ragged tiles of 64 keys."""
    k_bits, v_bits = draw(st.sampled_from(FORMS))
    kv_heads = draw(st.integers(1, 2))
    p_top = 0 if v_bits == 16 else draw(st.sampled_from([15, 255]))
    q_top = draw(st.sampled_from([7, 127]))
    form = CachedForm(kv_heads * draw(st.integers(1, 3)), kv_heads, q_top, p_top, k_bits, v_bits)
    width = draw(st.sampled_from([4, 20, 32, 64, 128]))
    turned = draw(st.sampled_from([0, 4, width // 4 * 2, width]))
    queries = draw(st.sampled_from([1, 5, 33]))
    capacity = queries + draw(st.sampled_from([0, 1, 31, 95, 150]))
    shape = CachedShape(draw(st.integers(1, 2)), queries, capacity, width, turned)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random_case(rng, shape, form, draw(st.booleans()))


@settings(max_examples=60)
@given(case=cases())
def test_twin_reference_and_launcher_agree(
    device: str, launched: Launched | None, case: CachedCase
) -> None:
    """y within its bounds, caches bit by bit."""
    y, caches = twin_outputs(case, device)
    assert_right(case, y)
    wanted = case.caches()
    for found, kept in zip(caches, (wanted.k, wanted.k_scales, wanted.v), strict=True):
        np.testing.assert_array_equal(found, kept)
    if launched is not None:
        assert_right(case, output(launched, case))


def test_lines_behind_the_last_query_look_at_nothing(device: str) -> None:
    """A hidden value that is no number, in a canvas whose blocks are numbered from 1."""
    form, shape = CachedForm(1, 1, 127, 0, 8, 16), CachedShape(1, 5, 6, 4)
    case = random_case(np.random.default_rng(0), shape, form, half=False)
    case.x["start"][:] = 1
    case.x["key_block"][:] = [[9, 1, 1, 1, 1, 5]]
    case.x["reach"][:] = [[3, 1, 6, 2, 6]]
    case.x["k_scales"][:, :, 0] = case.x["v_cache"][:, :, 0] = np.nan
    y, _ = twin_outputs(case, device)
    assert_right(case, y)


def test_a_wrong_code_in_the_cache_would_show(device: str) -> None:
    form = CachedForm(2, 1)
    case = random_case(np.random.default_rng(3), CachedShape(1, 4, 40, 32), form, half=False)
    y, _ = twin_outputs(case, device)
    seen = int(np.argmin(case.x["key_block"][0]))
    case.x["v_cache"][0, 0, seen] ^= 64
    with pytest.raises(AssertionError, match="is not between"):
        assert_right(case, y)
