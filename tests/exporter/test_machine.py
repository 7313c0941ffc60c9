"""Facts are read from the texts of real systems, and from what is none of them."""

import platform
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import machine
from exporter.machine import Gpu, Memory

SERVER = """\
NVIDIA H100 80GB HBM3, 570.86.10, 81559, 9.0
NVIDIA GeForce RTX 5090, 580.65.06, 32607, 12.0
"""
JETSON = "Orin (nvgpu), 540.4.0, [N/A], 8.7\n"
X86 = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni amx_int8\n" * 2
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32 atomics asimddp i8mm\n"


def test_gpus_of_a_server_and_of_a_board() -> None:
    assert machine.parse_gpus(SERVER) == [
        Gpu("NVIDIA H100 80GB HBM3", "570.86.10", 81559, 90),
        Gpu("NVIDIA GeForce RTX 5090", "580.65.06", 32607, 120),
    ]
    assert machine.parse_gpus(JETSON) == [Gpu("Orin (nvgpu)", "540.4.0", None, 87)]
    assert machine.parse_gpus("Field 'compute_cap' is not a valid field to query.\n") == []


def test_processor_extensions() -> None:
    assert machine.cpu_features(X86) == ["AVX2", "AVX512-VNNI", "AMX-INT8"]
    assert machine.cpu_features(ARM) == ["NEON", "NEON dot product", "NEON int8 matmul"]


def test_memory() -> None:
    text = "MemTotal:       24626508 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n"
    assert machine.parse_memory(text) == Memory(24626508 * 1024, 20000000 * 1024)
    assert machine.parse_memory("MemFree: 1 kB\n") is None


@given(text=st.text())
def test_any_text_is_survived(text: str) -> None:
    """Nothing raises, and what is returned is made of the text or is nothing."""
    assert len(machine.parse_gpus(text)) <= len(text.splitlines())
    assert len(machine.cpu_features(f"flags\t: {text}")) <= len(text.split())
    machine.parse_memory(f"MemTotal: {text} kB")


def test_command_that_is_absent_or_fails_says_nothing() -> None:
    assert machine.output_of(["no-such-program-anywhere"]) == ""
    assert machine.output_of([sys.executable, "-c", "print('seen'); raise SystemExit(1)"]) == ""
    assert machine.output_of([sys.executable, "-c", "print('seen')"]) == "seen\n"


def test_command_that_hangs_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SECONDS_TO_ANSWER", 0.05)
    assert machine.output_of([sys.executable, "-c", "import time; time.sleep(60)"]) == ""


def test_file_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert machine.read_text(tmp_path / "absent") == ""
    assert machine.read_text(tmp_path) == ""


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc and loads glibc")
def test_this_machine() -> None:
    found = machine.parse_memory(machine.read_text(Path("/proc/meminfo")))
    assert found is not None
    assert 0 < found.available <= found.total
    assert machine.cpu_cores() >= 1
    assert machine.shared_library("m", [6]) == "libm.so.6"
    assert machine.shared_library("no-such-library", [1, 2]) == ""
    assert machine.load_library("no-such-library.so.1") is None
