"""What stands for CUDA on the host: halves, products of bytes, blocks and phases."""

import ctypes

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.launched import compile_on_cpu, host_compiler

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")
INT32 = st.integers(-(2**31), 2**31 - 1)
UINT32 = st.integers(0, 2**32 - 1)

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("on_cpu") / "on_cpu.so"
    loaded = ctypes.CDLL(str(compile_on_cpu(made, ["on_cpu.cc"], "-O1", "-fPIC", "-shared")))
    loaded.dp4a_unsigned.restype = ctypes.c_uint32
    return loaded


def pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def all_halves() -> Halves:
    return np.arange(2**16, dtype=np.uint16).view(np.float16)


def halved(library: ctypes.CDLL, values: Floats) -> Halves:
    halves = np.empty(values.shape, np.float16)
    library.halve(pointer(values), pointer(halves), ctypes.c_int64(values.size))
    return halves


def test_every_half_becomes_the_same_float(library: ctypes.CDLL) -> None:
    halves = all_halves()
    values = np.empty(2**16, np.float32)
    library.widen(pointer(halves), pointer(values), ctypes.c_int64(2**16))
    np.testing.assert_array_equal(values, halves.astype(np.float32))
    assert (np.signbit(values) == np.signbit(halves)).all()


def assert_halved(library: ctypes.CDLL, values: Floats) -> None:
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16)
    found = halved(library, values)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    rest = ~np.isnan(wanted)
    np.testing.assert_array_equal(found[rest].view(np.uint16), wanted[rest].view(np.uint16))


def test_floats_are_rounded_to_the_nearest_half_and_to_even(library: ctypes.CDLL) -> None:
    """All halves, what lies halfway between two of them, and the floats beside each of these."""
    halves = np.sort(all_halves()[np.isfinite(all_halves())]).astype(np.float64)
    ends = [65504.0, 65520.0, 65536.0, 3e38]
    exact = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2, ends]).astype(np.float32)
    infinite = np.float32(np.inf)
    for values in (exact, np.nextafter(exact, infinite), np.nextafter(exact, -infinite)):
        assert_halved(library, values)


def test_any_bits_are_rounded(library: ctypes.CDLL) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    assert_halved(library, bits.view(np.float32))


@given(INT32, INT32, st.integers(-(2**30), 2**30))
def test_products_of_bytes(library: ctypes.CDLL, a: int, b: int, total: int) -> None:
    left, right = (np.array([x], np.int32).view(np.int8).astype(int) for x in (a, b))
    assert library.dp4a(a, b, total) == total + left @ right


@given(UINT32, UINT32, st.integers(0, 2**31))
def test_products_of_bytes_without_a_sign(library: ctypes.CDLL, a: int, b: int, total: int) -> None:
    left, right = (np.array([x], np.uint32).view(np.uint8).astype(int) for x in (a, b))
    assert library.dp4a_unsigned(*map(ctypes.c_uint32, (a, b, total))) == total + left @ right


def test_threads_see_what_others_left_in_the_phase_before(library: ctypes.CDLL) -> None:
    values = np.random.default_rng(0).integers(-99, 99, (12, 8), dtype=np.int32)
    sums = np.zeros_like(values)
    assert library.sum_blocks(pointer(values), pointer(sums), 12) == 0
    wanted = values.sum(-1, keepdims=True) + 2 * values
    np.testing.assert_array_equal(sums[:, :7], wanted[:, :7])
    assert not sums[:, 7].any()  # it returned early


def test_no_blocks_do_nothing(library: ctypes.CDLL) -> None:
    assert library.sum_blocks(None, None, 0) == 0
