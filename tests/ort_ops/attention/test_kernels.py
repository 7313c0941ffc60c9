"""Attention of all kinds of machines against plain loops, which `expected.h` holds."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from ort_ops.build import RELEASE, compiler
from tests.compiled_kernels import compile_harness, run_harness

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SANITIZE = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
cross_tools_missing = not (shutil.which(CROSS) and shutil.which(EMULATOR))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled for this machine as the library is."""
    folder = tmp_path_factory.mktemp("attention")
    return compile_harness(folder, platform.machine(), RELEASE, folder="attention")


@needs_compiler
def test_kernels_compute_what_plain_loops_do(harness: Path) -> None:
    assert run_harness([harness], seed=1, forms=160)[-1] == "portable"


@needs_compiler
def test_kernels_keep_to_their_memory(tmp_path: Path) -> None:
    program = compile_harness(tmp_path, platform.machine(), SANITIZE, folder="attention")
    run_harness([program], seed=1_000_000, forms=7)


@needs_compiler
def test_a_file_for_one_machine_gives_no_function_to_others(harness: Path) -> None:
    """As of linears: what the linker shared might be made for AVX-512."""
    kernels = sorted(harness.parent.glob("*kernel_*.o"))
    assert kernels
    for kernel in kernels:
        listed = subprocess.run(["nm", "-C", kernel], capture_output=True, text=True, check=True)
        symbols = [line.split(maxsplit=2)[-2:] for line in listed.stdout.splitlines()]
        assert [name for kind, name in symbols if kind in "WVuT"] == []


@pytest.mark.arm
@pytest.mark.skipif(cross_tools_missing, reason=f"{CROSS} or {EMULATOR} is missing")
def test_arm_kernels_compute_what_plain_loops_do(tmp_path: Path) -> None:
    program = compile_harness(tmp_path, "aarch64", RELEASE, CROSS, folder="attention")
    cores = {
        "max": ["i8mm", "neon", "portable"],
        "cortex-a76": ["neon", "portable"],  # dot products
        "cortex-a72": ["portable"],
    }
    for core, kernels in cores.items():
        place = ["-L", "/usr/aarch64-linux-gnu", "-cpu", core]
        assert run_harness([EMULATOR, *place, program], seed=1, forms=30) == kernels
