"""Kernels compile for the GPUs of all targets, without warnings, and stay in registers."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from ort_ops.build import ROOT

NVCC = shutil.which("nvcc")
GPUS = (86, 87, 89, 110, 120)  # SM of RTX 30, Orin, RTX 40, Thor, RTX 50
# the kernels of a launcher, and the most registers of a thread: an SM has 65536, so that with 128
# of them 4 blocks of 128 threads share it, and one works while others wait for memory
LAUNCHERS = {
    "linear_w4a8/launch.cu": (3, 40),
    "linear_w4a8/dp4a.cu": (4, 128),
    "linear_w4a8/mma8.cu": (16, 255),
    "attention/launch.cu": (17, 168),
    "kv_update/launch.cu": (6, 40),
}


@dataclass(frozen=True)
class Kernel:
    """What the assembler said of one kernel for one GPU."""

    name: str
    gpu: int
    registers: int
    spilled: int  # bytes
    stack: int  # bytes: arrays that are not in registers


def assembled(launcher: str, folder: Path) -> list[Kernel]:
    """All kernels of a launcher for all GPUs."""
    assert NVCC is not None
    versions = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in GPUS]
    options = ["-std=c++17", "-Xptxas=-v", "-Werror=all-warnings", "--threads=2", "-c"]
    done = subprocess.run(
        [NVCC, *options, *versions, "-o", str(folder / "launch.o"), str(ROOT / launcher)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    return [
        Kernel(name, int(gpu), int(registers), int(stores) + int(loads), int(stack))
        for name, gpu, stack, stores, loads, registers in pattern.findall(done.stderr)
    ]


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_kernels_stay_in_registers(launcher: str, tmp_path: Path) -> None:
    count, most = LAUNCHERS[launcher]
    kernels = assembled(launcher, tmp_path)
    assert sorted(kernel.gpu for kernel in kernels) == sorted(GPUS * count)
    wrong = [k for k in kernels if k.spilled or k.stack or k.registers > most]
    assert not wrong
