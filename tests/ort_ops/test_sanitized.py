"""Launchers on a GPU under compute-sanitizer: no memory but their own, and no races."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ort_ops.build import ROOT
from tests.launched import ON_GPU, WRAPPERS
from tests.ort_ops.test_launch_bounds import SOURCES

SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
FORMS = 40
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver of all launchers, in memory of exactly the size that they are given."""
    made = tmp_path_factory.mktemp("sanitized") / "launch_bounds"
    names = (*SOURCES, "managed.cc")
    files = [str((WRAPPERS if name.endswith(".cc") else ROOT) / name) for name in names]
    # operator new[] is for the host alone, which nvcc does not take it for
    options = [*ON_GPU, "-lineinfo", "-diag-suppress=20011", "--threads=0", "-x", "cu"]
    subprocess.run(["nvcc", *options, *files, "-o", str(made)], check=True)
    return made


def test_outputs_are_written(program: Path) -> None:
    subprocess.run([program, str(FORMS)], check=True)


@pytest.mark.skipif(not Path(SANITIZER).is_file(), reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_nothing_is_found(program: Path, tool: str) -> None:
    command = (SANITIZER, "--tool", tool, "--error-exitcode", "9", str(program), str(FORMS))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
