"""`dqexport bench` on real bundles, on the CPU; engines by a stand-in of TensorRT."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.bench.decodes import held_out, prompts_of
from exporter.bench.forwards import default_canvases
from exporter.graph_kind import graph_kinds
from exporter.runtime.bundle import read_bundle
from tests.commands import GOLDEN, assert_refused, dqexport
from tests.cuda_stand_in import CudaStandIn
from tests.tensorrt_stand_in import install, write_engines

FAST = ("--rounds", "2", "--prompts", "1", "--threads", "1", "--canvas", "48", "--canvas", "64")


@pytest.fixture
def engine_bundle(quick_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with an engine of its graph without a cache."""
    folder = tmp_path / "bundle"
    shutil.copytree(quick_bundle, folder)
    full = [kind for kind in graph_kinds(False) if kind.name == "full"]
    opened = read_bundle(folder)
    write_engines(folder, full, opened.decode, opened.model.max_length, 1, "tensorrt")
    return folder


def bench(bundle: Path, *options: str, code: int = 0) -> dict[str, Any]:
    outcome = dqexport("bench", bundle, *FAST, *options, "--json")
    assert outcome.code == code, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_a_bundle_for_the_cpu_against_its_checkpoint(quick_bundle: Path) -> None:
    found = bench(quick_bundle, "--checkpoint", str(GOLDEN / "llada"), "--profile")
    assert found["target"] == "cpu"
    assert found["baseline"] == "torch"
    block = read_bundle(quick_bundle).decode.block_length
    fed = [("full", 48, 48), ("full", 64, 64), ("cached", block, 48), ("cached", block, 64)]
    for name in ("cpu", "torch"):
        mine = [one for one in found["forwards"] if one["contestant"] == name]
        assert [(one["graph"], one["tokens"], one["canvas"]) for one in mine] == fed
        for one in mine:
            spread = one["milliseconds"]
            assert 0 < spread["lower"] <= spread["median"] <= spread["upper"]
            assert spread["rounds"] == 2
            assert (one["layers"] is None) == (name == "torch")
    theirs = {(one["graph"], one["canvas"]): one for one in found["forwards"][4:]}
    for one in found["forwards"][:4]:
        other = theirs[one["graph"], one["canvas"]]
        ratio = other["milliseconds"]["median"] / one["milliseconds"]["median"]
        assert one["times"] == pytest.approx(ratio)
        kinds = {layer["kind"] for layer in one["layers"]}
        assert kinds >= {"RMSNormalization"}
        taken = [layer["milliseconds"] for layer in one["layers"]]
        assert taken == sorted(taken, reverse=True)
    cpu, torch = found["answers"]
    assert cpu["tokens"] == torch["tokens"] > 0
    assert cpu["forwards"] > 0 and torch["times"] == 1
    assert found["runs_on"]["cpu"][0].endswith("graphs/full.onnx")
    assert {*found["unmeasured"]} == {"cuda, full", "cuda, cached"}
    assert "no provider cuda" in found["unmeasured"]["cuda, full"]


def test_the_table_names_baseline_reasons_and_layers(quick_bundle: Path) -> None:
    outcome = dqexport("bench", quick_bundle, *FAST, "--profile", "--provider", "cpu")
    assert outcome.code == 0, outcome.err
    for text in ("× cpu", "one forward", "answers, one prompt", "layers of full, 64 of 64: cpu"):
        assert text in outcome.out
    assert "not measured" not in outcome.out


def test_an_engine_is_measured_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, engine_bundle: Path
) -> None:
    cuda = CudaStandIn()
    install(monkeypatch, cuda, "tensorrt")
    found = bench(engine_bundle, "--profile")
    engine, cpu = found["forwards"][0], found["forwards"][2]
    assert (engine["contestant"], cpu["contestant"]) == ("tensorrt", "cpu")
    assert engine["layers"] == [{"name": "everything", "kind": "", "milliseconds": 1.5}]
    assert found["baseline"] == "cpu" and cpu["times"] == 1
    assert found["runs_on"]["tensorrt"] == ["tensorrt 9.9.9, engines/full.plan"]
    assert "no engine of cached is built" in found["unmeasured"]["tensorrt, cached"]
    (built,) = found["engines"]
    assert built["seconds"] == 1.5 and built["bytes"] > 0
    assert cuda.captures
    answers = {one["contestant"]: one for one in found["answers"]}
    assert answers["tensorrt"]["tokens"] == answers["cpu"]["tokens"]
    launches = cuda.launches
    bench(engine_bundle, "--no-cuda-graph", "--provider", "tensorrt")
    assert cuda.launches == launches


def test_a_target_that_is_not_here_is_said_and_the_rest_measured(
    monkeypatch: pytest.MonkeyPatch, engine_bundle: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = bench(engine_bundle, code=3)
    assert "is not installed" in found["unmeasured"]["tensorrt, full"]
    assert {one["contestant"] for one in found["forwards"]} == {"cpu"}
    assert bench(engine_bundle, "--provider", "cpu", "--prompts", "0", code=3)["answers"] == []


def test_nonsense_is_refused(quick_bundle: Path, tmp_path: Path) -> None:
    longest = read_bundle(quick_bundle).model.max_length
    outcome = dqexport("bench", quick_bundle, "--canvas", str(longest + 1))
    assert_refused(outcome, f"{longest + 1} tokens is more than the {longest}", "--max-canvas")
    assert_refused(dqexport("bench", tmp_path), "has no manifest.json", "finished bundle")


def test_prompts_are_those_of_the_gate_without_padding(quick_bundle: Path, tmp_path: Path) -> None:
    opened = read_bundle(quick_bundle)
    prompts = prompts_of(opened, 2)
    assert prompts == held_out(quick_bundle / "gate.safetensors")[:2]
    assert prompts and all(prompt and opened.model.mask_id not in prompt for prompt in prompts)
    (tmp_path / "manifest.json").write_bytes((quick_bundle / "manifest.json").read_bytes())
    made = prompts_of(read_bundle(tmp_path), 3)
    assert len(made) == 3
    assert all(0 <= token < opened.model.vocab_size for prompt in made for token in prompt)


@pytest.mark.parametrize(
    ("longest", "canvases"), [(64, [64]), (48, [48]), (512, [128, 512]), (4096, [256, 1024, 4096])]
)
def test_canvases_are_parts_of_the_longest(longest: int, canvases: list[int]) -> None:
    assert default_canvases(longest) == canvases
