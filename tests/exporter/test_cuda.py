"""What needs an NVIDIA GPU: `make gpu-check`, in an environment with the `cuda` extra."""

import json
from pathlib import Path

import pytest

from tests.commands import build

pytestmark = pytest.mark.gpu


def test_a_bundle_for_cuda_runs_on_cuda_and_passes_its_gate(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    build("--target", "cuda", "--device", "cuda", "-o", out)
    gate = json.loads((out / "manifest.json").read_text())["gate"]
    assert gate["provider"] == "CUDAExecutionProvider" and gate["passed"]


def test_cuda_calibrates_on_the_states_that_the_cpu_finds(tmp_path: Path) -> None:
    """Argmax decoding of a trained model: rounding of another device moves no state."""
    states = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        build("--target", "cpu", "--device", device, "-o", out)
        states.append(json.loads((out / "manifest.json").read_text())["calibration"]["states"])
    assert states[0] == states[1]
