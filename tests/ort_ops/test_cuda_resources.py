"""Kernels compile for the GPUs of all targets, without warnings, and stay in registers."""

import re

import pytest

from ort_ops.build import ROOT
from tests.cubins import EVERY_GPU, NVCC, Compiler

# the kernels of a launcher, and the most registers of a thread: an SM has 65536, so that with 128
# of them 4 blocks of 128 threads share it, and one works while others wait for memory
LAUNCHERS = {
    "linear_w4a8/launch.cu": (6, 40),
    "linear_w4a8/dp4a.cu": (4, 128),
    "linear_w4a8/mma8.cu": (18, 255),
    "linear_w4a8/mma4.cu": (10, 255),
    "linear_w4a8/wgmma.cu": (16, 255),
    "linear_w4a8/halves.cu": (18, 255),
    "linear_w4a8/floats.cu": (4, 128),
    "attention/launch.cu": (4, 72),
    "attention/attend.cu": (3, 48),
    "attention/plain.cu": (4, 168),
    "attention/tensor_core_64.cu": (3, 168),
    "attention/tensor_core_128.cu": (3, 168),
    "attention/tensor_core_256.cu": (3, 255),
    "cached_attention/launch.cu": (4, 80),
    "kv_update/launch.cu": (6, 40),
}


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.cuda_compile
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_kernels_stay_in_registers(compiler: Compiler, launcher: str) -> None:
    count, most = LAUNCHERS[launcher]
    compiled = compiler(launcher)
    kernels = compiled.kernels
    assert sorted(kernel.gpu for kernel in kernels) == sorted([*EVERY_GPU] * count)
    wrong = [k for k in kernels if k.spilled or k.stack or k.registers > most]
    assert not wrong
    assert "Performance Loss" not in compiled.log  # wgmma that wait for each other


def test_no_launcher_is_forgotten() -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.cu")
        if re.search(r"\blaunch<|\battend_by_tiles<", path.read_text())
    }
    assert sources == set(LAUNCHERS)
