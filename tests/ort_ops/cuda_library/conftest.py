"""The library of operators for GPUs, of kernels that run on the host or on the GPU."""

import pytest

from exporter.runtime.operators import compute_capability
from ort_ops.build_cuda import prebuild
from tests.launched import host_compiler
from tests.one_node import Device


@pytest.fixture(scope="session", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "cpu":
        if host_compiler() is None:
            pytest.skip("no g++")
        return Device(prebuild(None), ["CPUExecutionProvider"])
    sm = compute_capability()
    assert sm is not None
    return Device(prebuild(sm), ["CUDAExecutionProvider", "CPUExecutionProvider"])
