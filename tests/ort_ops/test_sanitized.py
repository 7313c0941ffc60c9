"""Launchers on a GPU under compute-sanitizer: no memory but their own, and no races."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cubins import NVCC
from tests.launched import WRAPPERS, compile_on_gpu, sm_at_hand
from tests.ort_ops.test_launch_bounds import SOURCES

SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
FORMS = 40
# operator new[] is for the host alone, which nvcc does not take it for
FLAGS = ("-lineinfo", "-diag-suppress=20011")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver of all launchers, in memory of exactly the size that they are given."""
    made = tmp_path_factory.mktemp("sanitized") / "launch_bounds"
    return compile_on_gpu(made, (*SOURCES, "managed.cc"), sm_at_hand(), *FLAGS)


@pytest.mark.cuda_compile
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("name", sorted(path.name for path in WRAPPERS.glob("launch_*.cc")))
def test_drivers_compile_without_a_gpu(tmp_path: Path, name: str) -> None:
    """What tests on a GPU call launchers by; the kernels are compiled elsewhere."""
    own = (name, "managed.cc")
    assert compile_on_gpu(tmp_path / "driver.so", own, 90, "-shared", *FLAGS).is_file()


@pytest.mark.gpu
def test_outputs_are_written(program: Path) -> None:
    subprocess.run([program, str(FORMS)], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not Path(SANITIZER).is_file(), reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_nothing_is_found(program: Path, tool: str) -> None:
    command = (SANITIZER, "--tool", tool, "--error-exitcode", "9", str(program), str(FORMS))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
