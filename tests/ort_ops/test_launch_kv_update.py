"""Writing into a cache: reference, function bodies and launcher agree, bit by bit."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_ops.function_body import DOMAIN, Body
from ort_ops.kv_update.op import NAME, function_body, reference
from tests.launched import Launched, host_compiler

SOURCES = ("kv_update/launch.cu", "launch_kv_update.cc")
KINDS = {
    np.float32: ir.DataType.FLOAT, np.float16: ir.DataType.FLOAT16, np.int8: ir.DataType.INT8
}  # fmt: skip
needs_compiler = pytest.mark.skipif(host_compiler() is None, reason="no g++")

Array = npt.NDArray[Any]


class Call(ctypes.Structure):
    """`KvUpdate` of launch.h."""

    _fields_ = [(n, ctypes.c_int32) for n in ("batch", "heads", "capacity", "fed", "bytes")]


@dataclass(frozen=True)
class Update:
    """The operator's inputs."""

    cache: Array
    fresh: Array
    start: npt.NDArray[np.int64]

    @property
    def expected(self) -> Array:
        """The cache, vector by vector."""
        y = self.cache.copy()
        for row, head, place in np.ndindex(*self.fresh.shape[:3]):
            y[row, head, self.start[row] + place] = self.fresh[row, head, place]
        return y


@st.composite
def updates(draw: st.DrawFn) -> Update:
    """All of the cache or a part of it, other starts in other rows, vectors of odd lengths too."""
    batch, heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    capacity = draw(st.integers(1, 24))
    fed = draw(st.integers(1, capacity))
    kind = draw(st.sampled_from(list(KINDS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    cache, fresh = (
        rng.integers(-99, 99, (batch, heads, length, width)).astype(kind)
        for length in (capacity, fed)
    )
    return Update(cache, fresh, rng.integers(0, capacity - fed + 1, batch))


@given(updates())
def test_the_reference_puts_each_vector_in_its_place(update: Update) -> None:
    np.testing.assert_array_equal(
        reference(update.cache, update.fresh, update.start), update.expected
    )


def model(update: Update, body: Body) -> bytes:
    """The node and its function body."""
    tensors = {"cache": update.cache, "fresh": update.fresh, "start": update.start}
    inputs = [
        ir.Value(
            name=name, type=ir.TensorType(ir.DataType.from_numpy(x.dtype)), shape=ir.Shape(x.shape)
        )
        for name, x in tensors.items()
    ]
    node = ir.node(NAME, inputs, domain=DOMAIN)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", inputs[0].type, inputs[0].shape
    opsets = {"": body.opset, DOMAIN: 1}
    graph = ir.Graph(inputs, [y], nodes=[node], name="g", opset_imports=opsets)
    whole = ir.Model(graph, ir_version=10, functions=[function_body(body)])
    data: bytes = ir.serde.serialize_model(whole).SerializeToString()
    return data


@settings(max_examples=25)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [21, 24])
@given(update=updates())
def test_the_function_body_is_the_reference(opset: int, half: bool, update: Update) -> None:
    """Whatever floats the model around it computes in: codes and scales are written as they are."""
    session = ort.InferenceSession(
        model(update, Body(opset, half)), providers=["CPUExecutionProvider"]
    )
    feeds = {"cache": update.cache, "fresh": update.fresh, "start": update.start}
    (y,) = session.run(None, feeds)
    assert y.dtype == update.cache.dtype
    np.testing.assert_array_equal(y, update.expected)


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    made = Launched.compiled(tmp_path_factory, SOURCES, request.param == "gpu")
    made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def output(launched: Launched, update: Update, in_place: bool, offset: int = 0) -> Array:
    """What the launcher leaves; all tensors begin `offset` bytes behind an aligned address."""
    batch, heads, capacity, width = update.cache.shape
    call = Call(batch, heads, capacity, update.fresh.shape[2], width * update.cache.itemsize)
    cache, fresh = launched.put(update.cache, offset), launched.put(update.fresh, offset)
    start = launched.put(update.start)
    y = cache if in_place else launched.poisoned(update.cache.shape, update.cache.dtype)
    pointers = (ctypes.c_void_p(buffer.pointer) for buffer in (cache, fresh, start, y))
    assert launched.library.launch(ctypes.byref(call), *pointers) == 0
    if not in_place:
        np.testing.assert_array_equal(cache.array(), update.cache)
    return y.array()


@needs_compiler
@settings(max_examples=200)
@given(update=updates(), in_place=st.booleans(), offset=st.sampled_from([0, 1, 4, 8, 16]))
def test_the_launcher_is_the_reference(
    launched: Launched, update: Update, in_place: bool, offset: int
) -> None:
    np.testing.assert_array_equal(output(launched, update, in_place, offset), update.expected)


@needs_compiler
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("start", [-2, 3, 4, 2**40])
def test_nothing_is_written_outside_of_the_cache(
    launched: Launched, start: int, in_place: bool
) -> None:
    """A wrong start cannot be reported from a GPU; it must not write into other heads either."""
    cache = np.arange(2 * 2 * 4 * 3, dtype=np.float32).reshape(2, 2, 4, 3)
    fresh = -np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3)
    update = Update(cache, fresh, np.array([start, 1]))
    wanted = cache.copy()
    wanted[1, :, 1:4] = fresh[1]
    for place in range(3):
        if 0 <= start + place < 4:
            wanted[0, :, start + place] = fresh[0, :, place]
    np.testing.assert_array_equal(output(launched, update, in_place), wanted)


@needs_compiler
def test_no_rows(launched: Launched) -> None:
    empty = Update(np.zeros((0, 2, 4, 3)), np.zeros((0, 2, 1, 3)), np.zeros(0, np.int64))
    assert output(launched, empty, in_place=False).size == 0
