"""Engines and CUDA graphs on a real GPU: `make check-gpu`.

The reference model is sure of its tokens, so other kernels and rounding of 16 bits give the same
answers; a wrong buffer or a recording of old addresses does not.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from exporter.runtime.bundle import read_bundle
from exporter.runtime.cuda_runtime import open_cuda
from exporter.runtime.errors import UserError
from exporter.runtime.open_model import Hardware, open_model
from tests.commands import build, dqexport
from tests.cuda_stand_in import CudaStandIn, Kind, Mode

pytestmark = pytest.mark.gpu

PROMPTS = ("__A123+456=", "_S58982066=", "____Rhello=")
BASE = frozenset({"id1", "l1", "rest"})


def capability() -> int:
    try:
        return open_cuda().capability()
    except UserError as error:
        pytest.skip(str(error))


def answers(bundle: Path, *options: str) -> list[Any]:
    """What the command prints for PROMPTS, twice each: recordings are replayed."""
    given = [part for prompt in PROMPTS * 2 for part in ("--prompt", prompt)]
    outcome = dqexport("run", bundle, *given, *options, "--json")
    assert outcome.code == 0, outcome.err
    assert "no CUDA graphs" not in outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


@pytest.fixture(scope="module")
def cuda_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cuda") / "bundle"
    build("--target", "cuda", "-o", out)
    return out


@pytest.fixture(scope="module")
def engine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines of TensorRT for RTX for the GPU at hand."""
    sm = capability()
    if find_spec("tensorrt_rtx") is None and find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("TensorRT for RTX is not installed")
    fit = [
        target for target in map(targets.load, targets.names())
        if target.runtime == "tensorrt-rtx" and sm in (target.sm or ())
    ]  # fmt: skip
    if not fit:
        pytest.skip(f"no target of TensorRT for RTX has SM {sm}")
    out = tmp_path_factory.mktemp("engines") / "bundle"
    build("--target", fit[0].name, "-o", out)
    return out


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("graphs", ["--cuda-graph", "--no-cuda-graph"])
def test_onnx_runtime_on_cuda_answers_as_on_the_cpu(
    cuda_bundle: Path, graphs: str, cache: str
) -> None:
    found = answers(cuda_bundle, "--provider", "cuda", graphs, "--cache", cache)
    want = answers(cuda_bundle, "--provider", "cpu", "--cache", cache)
    assert [one["ids"] for one in found] == [one["ids"] for one in want]
    assert {one["runs_on"]["provider"] for one in found} == {"cuda"}


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("graphs", ["--cuda-graph", "--no-cuda-graph"])
def test_an_engine_answers_as_onnx_runtime(engine_bundle: Path, graphs: str, cache: str) -> None:
    found = answers(engine_bundle, graphs, "--cache", cache)
    want = answers(engine_bundle, "--provider", "cpu", "--cache", cache)
    assert [one["ids"] for one in found] == [one["ids"] for one in want]
    assert {one["runs_on"]["runtime"] for one in found} == {"tensorrt-rtx"}


def test_recorded_and_direct_calls_of_an_engine_are_equal(engine_bundle: Path) -> None:
    """Bit for bit: the kernels are the same."""
    bundle = read_bundle(engine_bundle)
    sessions = [
        open_model(bundle, False, BASE, False, Hardware("tensorrt-rtx", cuda_graphs=on))
        for on in (True, False)
    ]
    bias = np.zeros((2, len(bundle.model.special_ids)), np.float32)
    draw = np.random.default_rng(0)
    for length in (16, 24, 128, 300) * 4:
        ids = draw.integers(0, bundle.model.mask_id, (1, length))
        window = np.arange(length - 5, length)
        one, other = (
            session.forward(ids, ids >= 0, window, bias, None, None, BASE) for session in sessions
        )
        assert all(np.array_equal(one[name], other[name]) for name in BASE)


def test_bench_measures_what_is_here(engine_bundle: Path) -> None:
    outcome = dqexport("bench", engine_bundle, "--rounds", "3", "--prompts", "1", "--profile",
                       "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    engine = [one for one in found["forwards"] if one["contestant"] == "tensorrt-rtx"]
    assert engine and all(one["layers"] for one in engine)


def test_the_stand_in_has_no_function_that_cuda_python_has_not() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    for name in vars(CudaStandIn):
        if name.startswith("cuda"):
            assert hasattr(real, name), name
    for mine, theirs in ((Kind, real.cudaMemcpyKind), (Mode, real.cudaStreamCaptureMode)):
        assert {one.name: int(one) for one in mine}.items() <= {
            one.name: int(one) for one in theirs
        }.items()
