"""Writing into caches by ONNX Runtime's CUDA provider, on the host and on GPUs."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from ort_ops.kv_update.op import NAME, reference
from tests.one_node import Array, Device, OneNode

TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])


def operands(dtype: npt.DTypeLike, fed: int = 3) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    cache, fresh = (rng.integers(-99, 99, (2, 3, many, 20)).astype(dtype) for many in (7, fed))
    return {"cache": cache, "fresh": fresh, "start": np.array([0, 4])}


def node(inputs: dict[str, Array]) -> OneNode:
    cache = inputs["cache"]
    outputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {"y": (cache.dtype, cache.shape)}
    return OneNode(NAME, {}, inputs, outputs)


@TYPES
@pytest.mark.parametrize("fed", [0, 1, 3])
def test_the_operator_is_the_reference(device: Device, dtype: npt.DTypeLike, fed: int) -> None:
    inputs = operands(dtype, fed)
    (y,) = node(inputs).run(device)
    np.testing.assert_array_equal(y, reference(*inputs.values()))


@TYPES
def test_a_bound_cache_is_written_in_place(device: Device, dtype: npt.DTypeLike) -> None:
    inputs = operands(dtype)
    wanted = reference(*inputs.values())
    session = node(inputs).session(device)
    where = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    values = {n: ort.OrtValue.ortvalue_from_numpy(x, where, 0) for n, x in inputs.items()}
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("y", values["cache"])
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(values["cache"].numpy(), wanted)


def test_what_does_not_fit_is_refused(device: Device) -> None:
    inputs = operands(np.float32, fed=8)
    with pytest.raises(Exception, match="no room for what is written"):
        node(inputs).run(device)
