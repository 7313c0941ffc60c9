"""End to end through the real command line: what a bundle decodes is what upstream decodes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from exporter import runtime
from exporter.build import BuildOptions
from exporter.build import build as build_bundle
from exporter.decoding import DecodeOptions
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.runtime.command import main as decode
from exporter.tasks import held_out_examples
from exporter.verify import read_manifest, verify
from tests.commands import (
    GOLDEN,
    ONE_THREAD,
    QUICK_FP32,
    QUICK_W4,
    build,
    changed,
    content,
    dqexport,
)

SAMPLERS = {
    "llada_low_confidence": "low-confidence",
    "fastdllm_quota": "low-confidence",
    "fastdllm_threshold": "threshold",
    "fastdllm_factor": "factor",
    "dream_maskgit_plus": "maskgit-plus",
    "dream_topk_margin": "topk-margin",
    "dream_entropy": "entropy",
}
OPTIONS = ("gen_length", "steps", "block_length", "threshold", "factor", "cfg_scale", "eps")
SWITCHES = {"logits_eos_inf": "--eos-inf", "confidence_eos_eot_inf": "--confidence-eos-inf"}
OWN_PROCESS = (("llada", "cfg1.0_leftpad_batch2"), ("dream", "topk_margin_leftpad_batch2"))
ALONE = """import runpy, sys
ours = ("exporter", "passes", "ort_ops", "targets", "trt_plugins", "dqexport")
sys.modules.update(dict.fromkeys((*ours, "torch", "onnx")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def cases(wanted: Callable[[str, str], bool]) -> list[Any]:
    found = []
    for family in ("llada", "dream"):
        for case in json.loads((GOLDEN / family / "cases.json").read_text()):
            uncached = case.get("params", {}).get("cache", "none") == "none"
            if case["kind"] == "decode" and uncached and wanted(family, case["id"]):
                found.append(pytest.param(family, case, id=f"{family}-{case['id']}"))
    return found


def prompts_of(case: dict[str, Any]) -> list[list[int]]:
    """The prompts without their padding."""
    masks = case["attention_mask"] or [[1] * len(row) for row in case["prompt"]]
    return [
        [token for token, real in zip(row, mask, strict=True) if real]
        for row, mask in zip(case["prompt"], masks, strict=True)
    ]


def argv_of(case: dict[str, Any]) -> list[str]:
    params = case["params"]
    argv = ["--json", "--no-early-stop", "--sampler", SAMPLERS[case["algorithm"]]]
    for name in OPTIONS:
        if params.get(name):
            argv += [f"--{name.replace('_', '-')}", str(params[name])]
    argv += [switch for name, switch in SWITCHES.items() if params.get(name)]
    prompts = prompts_of(case)
    for prompt in prompts:
        argv += ["--ids", ",".join(map(str, prompt))]
    return [*argv, "--batch", str(len(prompts))]


def assert_as_upstream(shown: str, case: dict[str, Any]) -> None:
    """Tokens, the commits of every call, and the number of calls."""
    expected, width = case["expected"], len(case["prompt"][0])
    results, prompts = [json.loads(line) for line in shown.splitlines()], prompts_of(case)
    assert [prompt + row[width:] for prompt, row in zip(prompts, expected["canvas"], strict=True)] \
        == [result["ids"] for result in results]  # fmt: skip
    commits = [
        (step, row, position + width - len(prompts[row]), token)
        for row, result in enumerate(results)
        for step, position, token in result["trace"]
    ]
    wanted = [
        (step["forward"], *commit) for step in expected["steps"] for commit in step["commits"]
    ]
    assert sorted(commits) == sorted(wanted)
    for result in results:  # the figures of the batch
        assert result["forwards"] == expected["useful_forwards"]
        assert result["forwards"] + result["skipped"] == expected["forwards"]


@pytest.mark.parametrize(("family", "case"), cases(lambda f, i: (f, i) not in OWN_PROCESS))
def test_a_bundle_decodes_as_upstream(
    float_bundles: dict[str, Path], family: str, case: dict[str, Any]
) -> None:
    shown = StringIO()
    with redirect_stdout(shown):
        assert decode(float_bundles[family], argv_of(case)) == 0
    assert_as_upstream(shown.getvalue(), case)


@pytest.mark.parametrize(("family", "case"), cases(lambda f, i: (f, i) in OWN_PROCESS))
def test_its_own_program_decodes_as_upstream(
    float_bundles: dict[str, Path], family: str, case: dict[str, Any]
) -> None:
    program = [sys.executable, "-I", "-B", str(float_bundles[family] / "decode.py")]
    done = subprocess.run([*program, *argv_of(case)], capture_output=True, text=True, check=True)
    assert not done.stderr
    assert_as_upstream(done.stdout, case)


def test_all_uncached_cases_are_here() -> None:
    assert len(cases(lambda *_: True)) == 23 + 15
    assert len(cases(lambda f, i: (f, i) in OWN_PROCESS)) == len(OWN_PROCESS)


def test_the_bundle_runs_alone(reference_bundle: Path, tmp_path: Path) -> None:
    """Moved elsewhere, isolated, with nothing of ours to import: text in, the right text out."""
    moved = shutil.copytree(reference_bundle, tmp_path / "device")
    example = held_out_examples()[0]
    command = [sys.executable, "-I", "-B", "-c", ALONE, str(moved / "decode.py")]
    done = subprocess.run(
        [*command, "--prompt", example.prompt], capture_output=True, text=True, check=False,
        cwd=tmp_path, env=ONE_THREAD,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == example.answer
    assert "forwards" in done.stderr
    assert content(moved) == content(reference_bundle)  # running leaves nothing behind


def test_the_loop_is_copied_byte_for_byte(reference_bundle: Path) -> None:
    source = Path(runtime.__file__).parent
    for file in source.glob("*.py"):
        folder = reference_bundle / ("" if file.name == "decode.py" else "runtime")
        assert (folder / file.name).read_bytes() == file.read_bytes()
    copied = {*reference_bundle.glob("runtime/*")}
    assert {file.name for file in copied} == {f.name for f in source.glob("*.py")} - {"decode.py"}


def test_two_builds_are_equal_byte_for_byte(reference_bundle: Path, tmp_path: Path) -> None:
    build("-o", tmp_path / "again")
    assert content(tmp_path / "again") == content(reference_bundle)


def test_another_seed_gives_another_bundle(quick_bundle: Path, tmp_path: Path) -> None:
    build(*QUICK_W4, "--seed", "1", "-o", tmp_path / "b")
    ours, theirs = read_manifest(tmp_path / "b"), read_manifest(quick_bundle)
    assert ours.calibration is not None and theirs.calibration is not None
    assert ours.calibration.states != theirs.calibration.states


def test_the_library_builds_what_the_command_builds(quick_bundle: Path, tmp_path: Path) -> None:
    """Into an empty folder that is there already."""
    options = BuildOptions(
        recipe="w4a16",
        quant=QuantOptions(samples=16),
        decode=DecodeOptions(gen_length=16, block_length=16),
        calib_prompts=4,
        gate_prompts=2,
        gate=False,
    )
    manifest = build_bundle(GOLDEN / "llada", "cpu", tmp_path, options)
    assert manifest == read_manifest(quick_bundle)
    assert content(tmp_path) == content(quick_bundle)


def test_the_reference_bundle_is_sound_and_complete(reference_bundle: Path) -> None:
    manifest = read_manifest(reference_bundle)
    assert manifest.recipe == "w4a16-dllmquant" and manifest.target == "cpu"
    assert manifest.gate is not None and manifest.gate.passed
    assert not (reference_bundle / ".work").exists()
    steps = [record.step.partition("(")[0] for record in manifest.passes]
    layers = manifest.model.layers
    assert steps == ["WeightGrid", "Tmas", "Cgq", *["Gptq"] * layers, "Rtn"]
    listed = {file.path for file in manifest.files} | {"manifest.json", "manifest.sha256"}
    assert listed == content(reference_bundle).keys()


def test_a_second_target_uses_the_stages_of_the_first(quick_bundle: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = build(*QUICK_W4, "--work", work, "-o", tmp_path / "cpu")
    times = changed(work)
    second = build(*QUICK_W4, "--work", work, "--target", "cuda", "-o", tmp_path / "cuda")
    assert "roll out" in first.err and "roll out" not in second.err
    assert changed(work) | {"lock": 0} == times | {"lock": 0}
    assert content(tmp_path / "cpu") == content(quick_bundle)  # where stages lie leaves no trace
    cpu, cuda = read_manifest(tmp_path / "cpu"), read_manifest(tmp_path / "cuda")
    assert (cpu.compute, cuda.compute) == ("fp32", "fp16")
    assert cuda.runtime.providers[0] == "CUDAExecutionProvider"
    assert cpu.calibration == cuda.calibration and cpu.passes == cuda.passes


def test_force_replaces_a_bundle(quick_bundle: Path, tmp_path: Path) -> None:
    out = shutil.copytree(quick_bundle, tmp_path / "b")
    build(*QUICK_FP32, "--force", "-o", out)
    assert read_manifest(out).recipe == "fp32"
    verdict = verify(out, Progress())
    assert verdict.sound and not verdict.unknown


def test_a_failed_gate_leaves_the_old_bundle_as_it_was(quick_bundle: Path, tmp_path: Path) -> None:
    out = shutil.copytree(quick_bundle, tmp_path / "b")
    before = content(out)
    argv = [option for option in QUICK_W4 if option != "--no-gate"]
    assert dqexport("build", *argv, "--force", "-o", out).code == 1
    after = content(out)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith(".work/") for name in after.keys() - before.keys())
