"""The examination is complete on any machine, and right on machines that are described to it."""

import sys
from pathlib import Path

import pytest

import targets
from exporter import doctor, machine
from exporter.doctor import Finding, examine, package, why_not_here
from exporter.machine import Gpu, Memory

HOPPER = Gpu("H100", "570.1", 81559, 90)
TURING = Gpu("T4", "570.1", 15360, 75)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def test_this_machine(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {f"target {name}" for name in targets.names()} <= set(names)
    assert all(finding.seen for finding in findings)
    # The tests themselves run on these.
    here = {finding.name: finding for finding in findings}
    assert all(here[name].ok for name in ("python", "torch", "onnx", "onnx_ir", "tokenizers"))


def test_what_is_missing_has_a_hint(tmp_path: Path) -> None:
    missing = [f for f in examine(tmp_path) if not f.ok and f.name != "jetson"]
    assert all(finding.hint for finding in missing)


def test_empty_machine_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No programs on the path, no readable system files, no ONNX Runtime, no such folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(machine, "read_text", lambda path: "")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = {finding.name: finding for finding in examine(tmp_path / "absent")}
    assert found["onnxruntime"] == Finding(
        "onnxruntime", False, "not installed", "pip install onnxruntime"
    )
    for name in ("providers", "processor", "memory", "disk", "gpu", "nvcc", "c++ compiler"):
        assert not found[name].ok
    assert "cannot run here: ONNX Runtime has no CPUExecutionProvider" in found["target cpu"].seen


def test_package_whose_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_wheel.py").write_text("raise OSError('libfoo.so.3: no such file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = package("broken_wheel", ("broken-wheel",), optional=False)
    assert not finding.ok
    assert finding.seen == "version unknown, but its import fails: libfoo.so.3: no such file"


def test_memory_is_judged_by_what_is_available() -> None:
    gib = 2**30
    assert doctor.memory(Memory(16 * gib, 8 * gib)).seen == "8.0 GiB available of 16.0 GiB"
    assert doctor.memory(Memory(16 * gib, 8 * gib)).ok
    assert not doctor.memory(Memory(16 * gib, gib)).ok


@pytest.mark.parametrize(
    ("name", "providers", "graphics", "obstacle"),
    [
        ("cpu", [CPU], [], ""),
        ("cpu", [], [], "no CPUExecutionProvider"),
        ("cuda", [CUDA, CPU], [HOPPER], ""),
        ("cuda", [CUDA, CPU], [TURING, HOPPER], ""),
        ("cuda", [CPU], [HOPPER], "no CUDAExecutionProvider"),
        ("cuda", [CUDA, CPU], [], "here is no GPU"),
        ("cuda", [CUDA, CPU], [TURING], "here is SM 75"),
    ],
)
def test_what_runs_where(
    name: str, providers: list[str], graphics: list[Gpu], obstacle: str
) -> None:
    found = why_not_here(targets.load(name), providers, graphics)
    assert obstacle in found
    assert bool(found) == bool(obstacle)


def test_board_that_is_not_built_for_yet_says_what_to_do() -> None:
    finding = doctor.target(targets.load("jetson-thor"), [CPU], [])
    assert (finding.ok, finding.optional) == (False, True)
    assert finding.seen.startswith("cannot build yet, cannot run here: ")
    assert "cpu or cuda" in finding.hint
