"""The GPU at hand, from a driver that is compiled here: the call goes through the real loader."""

import shutil
import subprocess
from pathlib import Path

import pytest

from exporter.device import this_gpu
from exporter.device.build_error import EngineError
from exporter.device.this_gpu import Gpu, available_mib

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return flags ? 1 : CODE; }
int cuDeviceGet(int* device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  strncpy(name, "Orin", size);
  return device != 40;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? 1 : -1;
  return device != 40;
}
"""


def driver(folder: Path, code: int) -> str:
    """A library with the calls of libcuda whose cuInit returns `code`."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    (folder / "cuda.c").write_text(DRIVER.replace("CODE", str(code)))
    library = str(folder / f"libcuda-{code}.so")
    subprocess.run(["gcc", "-shared", "-fPIC", str(folder / "cuda.c"), "-o", library], check=True)
    return library


def test_its_name_capability_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_gpu, "LIBRARY", driver(tmp_path, 0))
    assert this_gpu.this_gpu() == Gpu("Orin", 87, shares_memory=True)


def test_a_driver_without_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_gpu, "LIBRARY", driver(tmp_path, 100))
    with pytest.raises(EngineError, match="cuInit returned 100"):
        this_gpu.this_gpu()


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_gpu, "LIBRARY", "libno-such-driver.so.1")
    with pytest.raises(EngineError, match="no GPU here"):
        this_gpu.this_gpu()


def test_available_memory_is_less_than_all() -> None:
    """MemTotal of the same file is the bound."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        assert available_mib() is None
        return
    total = next(line for line in path.read_text().splitlines() if line.startswith("MemTotal:"))
    left = available_mib()
    assert left is not None
    assert 0 < left <= int(total.split()[1]) // 1024
