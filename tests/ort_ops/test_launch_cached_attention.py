"""The launcher of attention over a cache against what is right for random operands."""

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.cached_attention.launch import Call, Operands, Results
from ort_ops.cached_attention.op import TURNS, CachedForm, Caches
from tests.cached_attention_case import Array, CachedCase, CachedShape, random_case
from tests.launched import Launched, host_compiler, kernel_sources

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")
SOURCES = (
    *kernel_sources("attention"), *kernel_sources("cached_attention"),
    "launch_cached_attention.cc",
)  # fmt: skip
INVALID_VALUE = 1  # cudaErrorInvalidValue
WIDTHS = (2, 16, 20, 32, 64, 80, 96, 112, 128, 160, 192, 256)
BITS = ((8, 8), (8, 4), (8, 16), (4, 8), (4, 4), (4, 16))
KINDS = pytest.mark.parametrize("bits", BITS, ids=lambda b: f"k{b[0]}v{b[1]}")
KERNELS = pytest.mark.parametrize("width", [20, 64], ids=["plain", "tensor cores"])
CACHES = ("k_cache", "k_scales", "v_cache")


@dataclass(frozen=True)
class Left:
    """What the launcher answers and leaves."""

    error: int
    y: Array
    caches: Caches


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    made = Launched.compiled(tmp_path_factory, SOURCES, request.param == "gpu")
    made.library.workspace.restype = made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def call_of(case: CachedCase) -> Call:
    form, x = case.form, case.x
    rows, queries, channels = x["q"].shape
    turned = 2 * x["cos"].shape[2] if "cos" in x else 0
    return Call(
        rows, form.heads, form.kv_heads, queries, x["k_cache"].shape[2], channels // form.heads,
        form.q_top, form.p_top if form.v_top else 0, form.k_bits, form.v_bits, turned,
        x["q"].dtype == np.float16,
    )  # fmt: skip


def run(launched: Launched, case: CachedCase, in_place: bool = True, offset: int = 0) -> Left:
    """All tensors begin `offset` bytes behind an aligned address."""
    call = call_of(case)
    given_buffers = {name: launched.put(x, offset) for name, x in case.x.items()}
    results = {"y": launched.poisoned(case.x["q"].shape, case.x["q"].dtype)}
    for name in CACHES:
        x = case.x[name]
        results[name] = given_buffers[name] if in_place else launched.poisoned(x.shape, x.dtype)
    room = launched.poisoned((launched.library.workspace(ctypes.byref(call)),), np.uint8)
    operands = Operands(**{name: buffer.pointer for name, buffer in given_buffers.items()})
    left = Results(**{name: buffer.pointer for name, buffer in results.items()})
    error = launched.library.launch(
        ctypes.byref(call), ctypes.byref(operands), ctypes.byref(left),
        ctypes.c_void_p(room.pointer),
    )  # fmt: skip
    if not in_place:
        for name in CACHES:
            np.testing.assert_array_equal(given_buffers[name].array(), case.x[name])
    return Left(error, results["y"].array(), Caches(*(results[n].array() for n in CACHES)))


def output(launched: Launched, case: CachedCase, in_place: bool = True, offset: int = 0) -> Array:
    """y, when the caches are right, too."""
    left = run(launched, case, in_place, offset)
    assert left.error == 0
    assert_same(left.caches, case.caches())
    return left.y


def assert_same(found: Caches, wanted: Caches) -> None:
    np.testing.assert_array_equal(found.k, wanted.k)
    np.testing.assert_array_equal(found.k_scales, wanted.k_scales)
    np.testing.assert_array_equal(found.v, wanted.v)


def assert_right(case: CachedCase, y: Array) -> float:
    """The share of probabilities that could have had no other code."""
    low, high, certain = case.bounds()
    wrong = ~((low <= y) & (y <= high))
    assert not wrong.any(), f"{y[wrong]} is not between {low[wrong]} and {high[wrong]}"
    return certain


def form_of(bits: tuple[int, int], **more: int) -> CachedForm:
    given_form = {"heads": 4, "kv_heads": 2, "q_top": 127, "p_top": 255} | more
    return CachedForm(**given_form, k_bits=bits[0], v_bits=bits[1])


@st.composite
def cases(draw: st.DrawFn) -> CachedCase:
    """Tiles of 64 rows and 64 keys, full and ragged; widths of all kernels; all bits."""
    kv_heads = draw(st.integers(1, 2))
    bits = draw(st.sampled_from(BITS))
    form = form_of(
        bits, heads=kv_heads * draw(st.sampled_from([1, 2, 3, 7])), kv_heads=kv_heads,
        q_top=draw(st.sampled_from([7, 127])), p_top=draw(st.sampled_from([15, 255])),
    )  # fmt: skip
    capacity = draw(st.sampled_from([1, 3, 63, 64, 65, 130, 200, 300]))
    width = draw(st.sampled_from(WIDTHS))
    shape = CachedShape(
        rows=draw(st.integers(1, 3)),
        queries=draw(st.sampled_from([n for n in (1, 2, 9, 31, 33, 70) if n <= capacity])),
        capacity=capacity,
        width=width,
        turned=draw(st.sampled_from([0, 2, width // 2 * 2])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random_case(rng, shape, form, draw(st.booleans()))


@settings(max_examples=60)
@given(case=cases(), in_place=st.booleans(), offset=st.sampled_from([0, 0, 4, 8, 16]))
def test_it_is_the_reference(
    launched: Launched, case: CachedCase, in_place: bool, offset: int
) -> None:
    assert_right(case, output(launched, case, in_place, offset))


def some_case(bits: tuple[int, int], half: bool = False, seed: int = 0, **sizes: int) -> CachedCase:
    """All see the first 200 of 230 positions; 9 are fed at 100 and at 191."""
    shape = CachedShape(**({"rows": 2, "queries": 9, "capacity": 230, "width": 64} | sizes))
    case = random_case(np.random.default_rng(seed), shape, form_of(bits), half)
    x = case.x | {
        "start": np.array([100, 191])[: shape.rows],
        "key_block": np.where(np.arange(shape.capacity) < 200, 0, 2**30).astype(np.int32)
        * np.ones((shape.rows, 1), np.int32),
        "reach": np.zeros((shape.rows, shape.queries), np.int32),
    }
    x["k_scales"] = np.abs(np.nan_to_num(x["k_scales"], nan=1 / 64))
    x["v_cache"] = np.nan_to_num(x["v_cache"]) if bits[1] == 16 else x["v_cache"]
    return replace(case, x=x)


def with_inputs(case: CachedCase, **more: Array) -> CachedCase:
    return replace(case, x=case.x | more)


def part_of(case: CachedCase, row: int, query: int) -> CachedCase:
    """One query of one sequence, which is all that is fed."""
    kept = {"k_mean", "v_scale", "v_zero"}
    x = {name: a if name in kept else a[row : row + 1] for name, a in case.x.items()}
    for name in ("q", "k", "v", "reach", *TURNS):
        if name in x:
            x[name] = x[name][:, query : query + 1]
    x["start"] = x["start"] + query
    return replace(case, x={name: np.ascontiguousarray(a) for name, a in x.items()})


@KINDS
@KERNELS
def test_most_codes_are_certain(launched: Launched, width: int, bits: tuple[int, int]) -> None:
    case = some_case(bits, width=width)
    assert assert_right(case, output(launched, case)) > 0.99


@KINDS
@KERNELS
@pytest.mark.parametrize("half", [False, True])
def test_queries_do_not_depend_on_their_neighbours(
    launched: Launched, half: bool, width: int, bits: tuple[int, int]
) -> None:
    """Nor on what else is fed, if its keys are there already. (Sums of floats may be of other
    parts of the keys, so they are but close.)"""
    case = some_case(bits, half, width=width)
    together = output(launched, case)
    left = case.caches()
    stored = with_inputs(case, k_cache=left.k, k_scales=left.k_scales, v_cache=left.v)
    for row, query in ((0, 0), (1, 8), (1, 4)):
        alone = part_of(stored, row, query)
        y = output(launched, alone)
        if bits[1] == 16:
            assert_right(alone, y)
        else:
            np.testing.assert_array_equal(y[0, 0], together[row, query])


@KERNELS
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_the_number_of_parts_changes_nothing(
    launched: Launched, width: int, bits: tuple[int, int]
) -> None:
    """A sequence alone is done in parts of the keys, among 20 others it is not."""
    case = some_case(bits, rows=1, capacity=600, width=width)
    kept = {"k_mean", "v_scale", "v_zero"}
    many = with_inputs(
        case, **{name: a if name in kept else np.repeat(a, 20, 0) for name, a in case.x.items()}
    )
    y = output(launched, many)
    np.testing.assert_array_equal(y, np.repeat(output(launched, case), 20, 0))


@KINDS
@KERNELS
def test_what_is_hidden_does_not_count(
    launched: Launched, width: int, bits: tuple[int, int]
) -> None:
    """Codes of any bits, scales and values that are no numbers, of keys of any hidden block."""
    case = some_case(bits, width=width)
    x = {name: case.x[name].copy() for name in (*CACHES, "key_block")}
    x["k_cache"][:, :, 200:], x["k_scales"][:, :, 200:] = -128, np.nan
    x["v_cache"][:, :, 200:] = np.nan if bits[1] == 16 else 127
    x["key_block"][:, 215:] = 2**31 - 1
    np.testing.assert_array_equal(output(launched, with_inputs(case, **x)), output(launched, case))


@KINDS
@KERNELS
def test_a_query_that_sees_nothing_weighs_all_alike(
    launched: Launched, width: int, bits: tuple[int, int]
) -> None:
    case = some_case(bits, width=width)
    reach = case.x["reach"].copy()
    reach[0, 3], reach[1] = -1, -1
    blind = with_inputs(case, reach=reach)
    y = output(launched, blind)
    assert_right(blind, y)
    assert (y[1] == y[1, :1]).all()
    np.testing.assert_array_equal(np.delete(y[0], 3, 0), np.delete(output(launched, case)[0], 3, 0))


@KERNELS
def test_a_query_that_sees_nothing_leaves_its_neighbours_alone(
    launched: Launched, width: int
) -> None:
    """It takes values in, too, that nobody has written."""
    case = some_case((8, 16), half=True, width=width)
    values, reach = case.x["v_cache"].copy(), case.x["reach"].copy()
    values[:, :, 210:], reach[0, 3] = np.nan, -1
    broken = with_inputs(case, v_cache=values, reach=reach)
    assert_right(broken, output(launched, broken))


@KINDS
def test_a_cache_is_filled_step_by_step_and_used_again(
    launched: Launched, bits: tuple[int, int]
) -> None:
    """Blocks of 32 into a cache of garbage, another prompt length in each row, then from 0 on."""
    rng = np.random.default_rng(3)
    form = form_of(bits)
    shape = CachedShape(rows=2, queries=32, capacity=160, width=64, turned=64)
    kept = {name: random_case(rng, shape, form, half=True).x[name] for name in CACHES}
    kept["k_scales"] = np.full_like(kept["k_scales"], np.nan)
    if bits[1] == 16:
        kept["v_cache"] = np.full_like(kept["v_cache"], np.nan)
    for first in (0, 32, 64, 96, 0, 32):
        start = np.array([first, first + 5])
        at = np.arange(shape.capacity)
        case = with_inputs(
            random_case(rng, shape, form, half=True),
            start=start,
            key_block=np.where(at < start[:, None] + 32, at // 32, 2**30).astype(np.int32),
            reach=(np.arange(32) + start[:, None]).astype(np.int32) // 32,
            **kept,
        )
        case.x["key_block"][1, :5] = 2**30  # of padding before the prompt
        if first == 0:
            case.x["reach"][1, :] = 1
        left = run(launched, case)
        assert left.error == 0
        assert_same(left.caches, case.caches())
        assert_right(case, left.y)
        kept = dict(zip(CACHES, (left.caches.k, left.caches.k_scales, left.caches.v), strict=True))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("start", [-3, 225, 2**40])
def test_nothing_is_written_outside_of_the_cache(
    launched: Launched, start: int, in_place: bool
) -> None:
    """A wrong start cannot be reported from a GPU; it must not write into other heads either."""
    case = some_case((8, 8))
    wrong = with_inputs(case, start=np.array([start, 100]))
    left = run(launched, wrong, in_place)
    at = [start + i for i in range(9) if 0 <= start + i < 230]
    untouched = [i for i in range(230) if i not in at]
    np.testing.assert_array_equal(
        left.caches.k[0][:, untouched], case.x["k_cache"][0][:, untouched]
    )
    np.testing.assert_array_equal(
        left.caches.v[0][:, untouched], case.x["v_cache"][0][:, untouched]
    )
    right = run(launched, with_inputs(case, start=np.array([100, 100])), in_place)
    np.testing.assert_array_equal(left.caches.k[1], right.caches.k[1])
    np.testing.assert_array_equal(left.y[1], right.y[1])


@settings(max_examples=50)
@given(data=st.data(), bits=st.sampled_from(BITS), width=st.sampled_from(WIDTHS))
def test_larger_calls_need_no_less_memory(
    launched: Launched, data: st.DataObject, bits: tuple[int, int], width: int
) -> None:
    """Memory is set aside for the largest call of each axis."""
    most = [data.draw(st.integers(1, n)) for n in (4, 300, 3000)]
    some = [data.draw(st.integers(1, n)) for n in most]
    sizes = []
    for batch, queries, capacity in (some, most):
        call = Call(batch, 4, 2, queries, capacity, width, 127, 255, *bits, 0, 1)
        sizes.append(launched.library.workspace(ctypes.byref(call)))
    assert sizes[0] <= sizes[1]


@pytest.mark.parametrize(
    "wrong",
    [{"width": 258}, {"capacity": 0}, {"capacity": 33026}, {"width": 5}, {"rotary": 66},
     {"rotary": 3}],
    ids=str,
)  # fmt: skip
def test_what_is_refused(launched: Launched, wrong: dict[str, int]) -> None:
    sizes = {"width": 64, "capacity": 100, "rotary": 0} | wrong
    call = Call(1, 1, 1, 1, sizes["capacity"], sizes["width"], 127, 255, 4, 8, sizes["rotary"], 0)
    error = launched.library.launch(
        ctypes.byref(call), ctypes.byref(Operands()), ctypes.byref(Results()), None
    )
    assert error == INVALID_VALUE


def test_nothing_fed_is_a_copy(launched: Launched) -> None:
    case = some_case((8, 8))
    empty = with_inputs(case, **{n: case.x[n][:, :0] for n in ("q", "k", "v", "reach")})
    left = run(launched, empty, in_place=False)
    assert left.error == 0
    assert_same(left.caches, Caches(*(case.x[name] for name in CACHES)))
