"""The launcher of attention against what is right for random operands."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.attention.launch import Call
from ort_ops.attention.op import AttentionTops, reference
from tests.attention_case import AttentionCase, AttentionShape, Floats, random_case
from tests.launched import Launched, host_compiler, kernel_sources

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")
SOURCES = (*kernel_sources("attention"), "launch_attention.cc")
WIDTHS = (1, 4, 16, 20, 32, 63, 64, 65, 80, 96, 112, 128, 144, 200, 256)
KERNELS = pytest.mark.parametrize("width", [20, 32], ids=["plain", "tensor cores"])
PRODUCTS = pytest.mark.parametrize("floats", [False, True], ids=["codes", "floats"])
MOST_WIDTH = 256
INVALID_VALUE = 1  # cudaErrorInvalidValue
TOPS = st.builds(
    AttentionTops,
    st.sampled_from([7, 127]), st.sampled_from([7, 127]),
    st.sampled_from([7, 15, 127, 255]), st.sampled_from([7, 15, 127, 255]),
)  # fmt: skip


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    made = Launched.compiled(tmp_path_factory, SOURCES, request.param == "gpu")
    made.library.workspace.restype = made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def call_of(case: AttentionCase) -> Call:
    rows, kv_heads, keys, width = case.k.shape
    tops = case.tops
    return Call(
        rows, case.heads, kv_heads, case.q.shape[1], keys, width,
        tops.q, tops.k, tops.v, tops.p, case.q.dtype == np.float16,
    )  # fmt: skip


def run(launched: Launched, case: AttentionCase) -> tuple[int, Floats]:
    """The launcher's answer and y."""
    call = call_of(case)
    y = launched.poisoned(case.q.shape, case.q.dtype)
    room = launched.poisoned((launched.library.workspace(ctypes.byref(call)),), np.uint8)
    buffers = [launched.put(x) for x in case.inputs] + [y, room]
    pointers = (ctypes.c_void_p(buffer.pointer) for buffer in buffers)
    return launched.library.launch(ctypes.byref(call), *pointers), y.array()


def output(launched: Launched, case: AttentionCase) -> Floats:
    error, y = run(launched, case)
    assert error == 0
    return y


def assert_right(case: AttentionCase, y: Floats) -> float:
    """The share of probabilities that could have had no other code."""
    low, high, certain = case.bounds()
    wrong = ~((low <= y) & (y <= high))
    assert not wrong.any(), f"{y[wrong]} is not between {low[wrong]} and {high[wrong]}"
    return certain


@st.composite
def cases(draw: st.DrawFn) -> AttentionCase:
    """Tiles of 32 and 64 queries and 64 keys, full and ragged; widths of all kernels, some of
    which are no whole words."""
    kv_heads = draw(st.integers(1, 3))
    shape = AttentionShape(
        rows=draw(st.integers(1, 3)),
        queries=draw(st.sampled_from([1, 2, 31, 32, 33, 70])),
        keys=draw(st.sampled_from([1, 2, 3, 5, 63, 64, 65, 130, 200])),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        width=draw(st.sampled_from(WIDTHS)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    case = random_case(rng, shape, draw(TOPS), draw(st.booleans()))
    return with_floats(case) if draw(st.booleans()) else case


def with_floats(case: AttentionCase) -> AttentionCase:
    """Probabilities and values without codes."""
    return replace(case, tops=replace(case.tops, v=0, p=0))


@settings(max_examples=100)
@given(case=cases())
def test_it_is_the_reference(launched: Launched, case: AttentionCase) -> None:
    assert_right(case, output(launched, case))


SHAPE = AttentionShape(rows=2, queries=37, keys=90, heads=6, kv_heads=2, width=32)


def some_case(
    seed: int = 0, half: bool = False, floats: bool = False, **sizes: int
) -> AttentionCase:
    """All see all but the last ten keys, which are not common either."""
    rng = np.random.default_rng(seed)
    case = random_case(rng, replace(SHAPE, **sizes), AttentionTops(), half)
    visible, common = np.ones_like(case.visible), case.common.copy()
    visible[..., -10:] = False
    common[:] = False
    common[:, :64] = True
    case = replace(case, visible=visible, common=common)
    return with_floats(case) if floats else case


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_bounds_are_those_of_the_reference(launched: Launched, width: int, half: bool) -> None:
    """They hold for the operator's own reference, and nearly all codes are certain."""
    case = some_case(width=width, half=half)
    q, k, v, scale, zero = (
        x.astype(np.float32) for x in (case.q, case.k, case.v, case.v_scale, case.v_zero)
    )
    y = reference(q, k, v, case.visible, case.common, scale, zero, case.heads, case.tops)
    assert assert_right(case, y.astype(case.q.dtype)) > 0.99
    assert_right(case, output(launched, case))


def test_any_mean_key(launched: Launched) -> None:
    """Keys of all bits: a code may differ where it lies next to a half, which is rare."""
    case = some_case()
    rng = np.random.default_rng(0)
    case = replace(case, k=rng.normal(size=case.k.shape).astype(np.float32) + 3)
    low, high, _ = case.bounds()
    y = output(launched, case)
    assert ((low <= y) & (y <= high)).mean() > 0.99


@KERNELS
@PRODUCTS
@pytest.mark.parametrize("half", [False, True])
def test_queries_do_not_depend_on_their_neighbours(
    launched: Launched, width: int, half: bool, floats: bool
) -> None:
    case = some_case(half=half, floats=floats, width=width)
    together = output(launched, case)
    for row, query in ((0, 0), (1, 36), (1, 32)):
        alone = replace(
            case,
            q=case.q[row : row + 1, query : query + 1],
            k=case.k[row : row + 1],
            v=case.v[row : row + 1],
            visible=case.visible[row : row + 1, :, query : query + 1],
            common=case.common[row : row + 1],
        )
        np.testing.assert_array_equal(output(launched, alone)[0, 0], together[row, query])


@KERNELS
@PRODUCTS
def test_the_number_of_parts_of_the_keys(launched: Launched, width: int, floats: bool) -> None:
    """A sequence alone is done in parts, among 12 others it is not: codes have the same sums."""
    case = some_case(floats=floats, width=width, rows=1, keys=600)
    many = replace(
        case,
        q=np.repeat(case.q, 12, 0), k=np.repeat(case.k, 12, 0), v=np.repeat(case.v, 12, 0),
        visible=np.repeat(case.visible, 12, 0), common=np.repeat(case.common, 12, 0),
    )  # fmt: skip
    y, alone = output(launched, many), output(launched, case)
    assert (y == y[:1]).all()
    assert_right(case, alone)
    if floats:
        assert_right(case, y[:1])
    else:
        np.testing.assert_array_equal(y[:1], alone)


@KERNELS
@PRODUCTS
def test_what_is_hidden_does_not_count(launched: Launched, width: int, floats: bool) -> None:
    case = some_case(floats=floats, width=width)
    other = replace(case, k=case.k.copy(), v=case.v.copy())
    other.k[:, :, -10:], other.v[:, :, -10:] = 1e4, -np.inf
    np.testing.assert_array_equal(output(launched, other), output(launched, case))


@KERNELS
@PRODUCTS
def test_tiles_that_nobody_sees_do_not_count(launched: Launched, width: int, floats: bool) -> None:
    """Of 200 keys 70 to 140 alone are seen, by some queries."""
    case = some_case(width=width, keys=200, floats=floats)
    case.visible[:] = False
    case.visible[:, :, ::3, 70:140] = True
    case.visible[:, :, 1::3, 5] = True
    case.visible[:, :, 2::3, :64] = True
    assert_right(case, output(launched, case))
    nobody = replace(case, k=case.k.copy(), v=case.v.copy())
    nobody.k[:, :, 140:], nobody.v[:, :, 140:] = 1e4, -np.inf
    np.testing.assert_array_equal(output(launched, nobody), output(launched, case))


@KERNELS
@PRODUCTS
@pytest.mark.parametrize("keys", [17, 64, 90])
def test_a_query_that_sees_nothing_takes_the_mean(
    launched: Launched, width: int, keys: int, floats: bool
) -> None:
    case = some_case(keys=keys, width=width, floats=floats)
    hidden = replace(case, visible=np.zeros_like(case.visible))
    y = output(launched, hidden)
    assert_right(hidden, y)
    assert (y == y[:, :1]).all()  # of every query
    case.visible[0, 0, 3] = False
    np.testing.assert_array_equal(output(launched, case)[0, 3], y[0, 3])


@KERNELS
def test_a_query_that_sees_nothing_takes_it_of_anything(launched: Launched, width: int) -> None:
    """A query, and a key that is not common, that are not numbers."""
    case = some_case(width=width)
    case.visible[0, 0, 3] = False
    broken = replace(case, q=case.q.copy(), k=case.k.copy())
    broken.q[0, 3], broken.k[:, :, 85] = np.nan, np.nan
    np.testing.assert_array_equal(output(launched, broken), output(launched, case))


@KERNELS
@PRODUCTS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["k", "v"])
def test_not_a_number_reaches_those_who_see_it(
    launched: Launched, width: int, name: str, value: float, floats: bool
) -> None:
    """Key 83 of key head 1, which is not common and seen by query 5 alone. (Infinite values are
    clipped to the last code, or to the last half.)"""
    case = some_case(width=width, floats=floats)
    case.visible[0, 0, 5, 83] = True
    whole = output(launched, case)
    broken = replace(case, k=case.k.copy(), v=case.v.copy())
    getattr(broken, name)[0, 1, 83, 3] = value
    y = output(launched, broken).reshape(2, 37, 6, width)
    others = np.ones((2, 37, 6), np.bool_)
    others[0, 5, 3:] = False
    np.testing.assert_array_equal(y[others], whole.reshape(y.shape)[others])
    finite = name == "v" and not np.isnan(value)
    assert np.isnan(y[~others]).all() != finite


@KERNELS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_query_that_is_not_a_number_stays_alone(
    launched: Launched, width: int, value: float
) -> None:
    case = some_case(width=width)
    whole = output(launched, case).reshape(2, 37, 6, width)
    broken = replace(case, q=case.q.copy())
    broken.q[1, 33, 2 * width + 7] = value
    y = output(launched, broken).reshape(whole.shape)
    assert np.isnan(y[1, 33, 2]).all()
    y[1, 33, 2] = whole[1, 33, 2]
    np.testing.assert_array_equal(y, whole)


@KERNELS
def test_without_common_keys_there_is_no_mean(launched: Launched, width: int) -> None:
    case = some_case(width=width)
    case.common[1] = False
    assert_right(case, output(launched, case))


@KERNELS
def test_small_vectors_keep_the_least_scale(launched: Launched, width: int) -> None:
    """Below 2^-24 a scale would let a key that is nearly nothing use all codes."""
    case = some_case(width=width)
    tiny = replace(case, q=case.q * np.float32(2.0**17), k=case.k * np.float32(2.0**-20))
    assert_right(tiny, output(launched, tiny))


@KERNELS
def test_large_scores_are_sharp(launched: Launched, width: int) -> None:
    """Scores of millions: the largest takes everything, and no code goes beyond p_top."""
    case = some_case(width=width)
    case = replace(case, q=case.q * np.float32(2.0**15))
    assert_right(case, output(launched, case))


@settings(max_examples=50)
@given(data=st.data(), width=st.sampled_from(WIDTHS))
def test_larger_calls_need_no_less_memory(
    launched: Launched, data: st.DataObject, width: int
) -> None:
    """Memory is set aside for the largest call of each axis."""
    most = [data.draw(st.integers(1, n)) for n in (4, 300, 300)]
    some = [data.draw(st.integers(1, n)) for n in most]
    sizes = []
    for batch, queries, keys in (some, most):
        call = Call(batch, 4, 2, queries, keys, width, 127, 127, 255, 255, 0)
        sizes.append(launched.library.workspace(ctypes.byref(call)))
    assert sizes[0] <= sizes[1]


def test_what_is_refused(launched: Launched) -> None:
    assert run(launched, some_case(width=MOST_WIDTH + 1))[0] == INVALID_VALUE
    none = some_case()
    empty = replace(
        none,
        k=none.k[:, :, :0], v=none.v[:, :, :0], visible=none.visible[..., :0],
        common=none.common[:, :0],
    )  # fmt: skip
    assert run(launched, empty)[0] == INVALID_VALUE
    tops = (127, 127, 255, 255)  # 33,026 products of 255 · 255 are more than 2^31
    long = Call(1, 1, 1, 1, 33026, 32, *tops, 0)
    assert launched.library.launch(ctypes.byref(long), *[None] * 9) == INVALID_VALUE


def test_no_queries_are_no_work(launched: Launched) -> None:
    case = some_case()
    empty = replace(case, q=case.q[:, :0], visible=case.visible[:, :, :0])
    assert output(launched, empty).shape == (2, 0, 192)
