"""The examination is complete on any machine, and right on machines that are described to it."""

import sys
from pathlib import Path

import pytest

import targets
from exporter import doctor, machine, machine_gpu, machine_jetson
from exporter.doctor import examine
from exporter.finding import Finding
from exporter.machine import Memory


def test_this_machine(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {f"target {name}" for name in targets.names()} <= set(names)
    assert all(finding.seen for finding in findings)
    # The tests themselves run on these.
    here = {finding.name: finding for finding in findings}
    assert all(here[name].ok for name in ("python", "torch", "onnx", "onnx_ir", "tokenizers"))
    assert here["target cpu"].ok


def test_what_is_missing_has_a_hint(tmp_path: Path) -> None:
    missing = [f for f in examine(tmp_path) if not f.ok and f.name != "jetson"]
    assert all(finding.hint for finding in missing)


def test_empty_machine_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No programs on the path, no readable system files, no ONNX Runtime, no such folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(machine_gpu, "find_nvcc", lambda: None)  # it looks beyond the path
    for module in (machine, machine_gpu, machine_jetson):
        monkeypatch.setattr(module, "read_text", lambda path: "")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "nvidia", None)
    found = {finding.name: finding for finding in examine(tmp_path / "absent")}
    assert found["onnxruntime"] == Finding(
        "onnxruntime", False, "not installed", "pip install onnxruntime"
    )
    for name in ("providers", "processor", "memory", "disk", "gpu", "nvcc", "c++ compiler"):
        assert not found[name].ok
    cpu = found["target cpu"]
    assert not cpu.ok and "cannot run them here: ONNX Runtime has no CPUExecutionP" in cpu.seen
    assert "cannot" not in found["target jetson-orin"].seen.partition(";")[0]


def test_a_summary_has_what_was_found_in_order() -> None:
    said = [
        Finding("tensorrt", True, "10.3.0", optional=True),
        Finding("tensorrt_rtx_bindings", False, "not installed", optional=True),
        Finding("cuda", True, "13.0", optional=True),
        Finding("nvcc", True, "12.6, /usr/local/cuda/bin/nvcc", optional=True),
        Finding("tensorrt headers", False, "not found", optional=True),
        Finding("c++ compiler", True, "g++", optional=True),
    ]
    here = doctor.summarized(said, ["CPUExecutionProvider"], [], jetson=True)
    assert here.modules == {"tensorrt", "cuda"} and here.tensorrt == "10.3.0"
    assert here.nvcc and here.compiler and here.jetson and not here.headers
    none = doctor.summarized([], [], [], jetson=False)
    assert none.tensorrt is None and not (none.modules or none.nvcc or none.headers)


def test_memory_is_judged_by_what_is_available() -> None:
    gib = 2**30
    assert doctor.memory(Memory(16 * gib, 8 * gib)).seen == "8.0 GiB available of 16.0 GiB"
    assert doctor.memory(Memory(16 * gib, 8 * gib)).ok
    assert not doctor.memory(Memory(16 * gib, gib)).ok
