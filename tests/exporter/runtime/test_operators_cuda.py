"""A bundle for the CUDA provider with operators of our own: built and run on a machine without."""

from pathlib import Path

import pytest

from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from exporter.manifest import Manifest
from exporter.runtime import operators
from exporter.runtime.operators import BUILT, FOLDER, find_library
from ort_ops.build_cuda import library_name, source_files
from tests.commands import dqexport

CUDA = "CUDAExecutionProvider"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its gate has passed: function bodies ran in the operators' place, in halves, on the CPU."""
    out = tmp_path_factory.mktemp("cuda") / "bundle"
    options = BuildOptions("w4a8-rtn", decode=DecodeOptions(gen_length=8), calib_prompts=4)
    build(None, "cuda", out, options)
    return out


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "compute_capability", lambda: 87)


def test_the_bundle_brings_operators_and_their_sources(bundle: Path) -> None:
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_text())
    layers = manifest.model.layers
    assert manifest.operators == {
        "DqxAttention": layers,
        "DqxGatedW4A8Channel": layers,
        "DqxLinearW4A8Channel": 5 * layers,
    }
    plugins = {file.path for file in manifest.files if file.role == "plugin"}
    assert plugins == {f"{FOLDER}/ort_ops/{name}" for name in source_files()}


def test_a_library_of_the_gpu_is_found(bundle: Path, tmp_path: Path, a_gpu: None) -> None:
    made = tmp_path / FOLDER / BUILT / library_name(87)
    made.parent.mkdir(parents=True)
    made.touch()
    assert find_library(tmp_path, CUDA) == made


def test_without_a_gpu_or_nvcc_standard_operators_run(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operators, "compute_capability", lambda: None)
    assert find_library(bundle, CUDA) is None
    monkeypatch.setattr(operators, "compute_capability", lambda: 1)  # of no GPU
    assert find_library(bundle, CUDA) is None
    assert "standard operators run" in capsys.readouterr().err


def test_floats_times_integers_stay_with_onnx_runtime(tmp_path: Path) -> None:
    options = BuildOptions("w4a16-rtn", gate_prompts=1, gate=False)
    manifest = build(None, "cuda", tmp_path / "plain", options)
    assert manifest is not None and manifest.operators == {}
    assert not (tmp_path / "plain" / FOLDER).exists()


def test_the_command_builds_for_a_gpu_that_is_here_or_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.ops_command.compute_capability", lambda: None)
    nowhere = dqexport("ops", "build", bundle, "--cuda")
    assert nowhere.code == 1 and "no NVIDIA GPU here" in nowhere.err
    alone = dqexport("ops", "build", bundle, "--sm", "87")
    assert alone.code == 1 and "Give --cuda, too" in alone.err
    monkeypatch.setenv("CXX", "no-such-compiler")
    for_cpu = dqexport("ops", "build", bundle)
    assert for_cpu.code == 1 and "no operators of our own for that" in for_cpu.err
    no_such_gpu = dqexport("ops", "build", bundle, "--cuda", "--sm", "1")
    assert no_such_gpu.code == 1
    assert not (bundle / FOLDER / BUILT / library_name(1)).exists()
