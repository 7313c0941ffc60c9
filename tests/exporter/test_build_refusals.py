"""What a build cannot do it says in two lines, before any work, and touches nothing."""

import json
import os
import resource
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from exporter.checkpoint import open_checkpoint
from exporter.planner import estimate
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.verify import read_manifest
from tests.commands import (
    DQEXPORT,
    GOLDEN,
    ONE_THREAD,
    QUICK_FP32,
    QUICK_W4,
    Outcome,
    assert_refused,
    build,
    content,
    dqexport,
    tmpfs,
)

RTX = ["--target", "rtx-40"]
GATED = [option for option in QUICK_W4 if option != "--no-gate"]


@pytest.mark.parametrize(
    ("argv", "says", "hint"),
    [
        (["--target", "jetson-orim"], "did you mean jetson-orin", "dqexport targets"),
        (["--target", "jetson-orin", "--engine", "full"], "No engines", "--engine"),
        ([*RTX, "--recipe", "w4a8", "--no-operators"], "4-bit weights", "--no-operators"),
        ([*RTX, "--kv-bits", "8", "--no-operators"], "not in 8", "--no-operators"),
        ([*RTX, "--kv-bits", "4"], "16 or 8 bits", "8-bit attention, as w4a8"),
        (
            ["--recipe", "w4a8", "--kv-bits", "4", "--k-bits", "8"],
            "codes of 4 bits",
            "--kv-bits 8",
        ),
        ([*RTX, "--embed-bits", "8"], "embeddings in floats", "--embed-bits"),
        (["--target", "rtx-40", "--engine", "half"], "`half`", "full-sample"),
        (["--engine", "full"], "No engines", "--engine"),
        (["--recipe", "w4a15"], "Unknown recipe `w4a15`", "w4a16"),
        (["--recipe", "w4a16", "--group", "128"], "Group 128 does not fit", "32"),
        (["--head-bits", "5"], "--head-bits 5", "--head-bits 16"),
        (["--calib", "no-such.jsonl"], "no-such.jsonl", "path"),
        (["--gen-length", "256"], "256", "--max-canvas"),
        (["--gen-length", "30", "--block-length", "16"], "30", "--gen-length 32"),
        (["--max-canvas", "512"], "512", "256"),
        (["--sampler", "best"], "`best`", "low-confidence"),
        (["--mask-id", "208"], "208", "--mask-id"),
        (["--device", "tpu"], "`tpu`", "cpu"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused(
    tmp_path: Path, argv: list[str], says: str, hint: str
) -> None:
    outcome = dqexport("build", GOLDEN / "llada", *argv, "-o", tmp_path / "b")
    outcome = Outcome(outcome.code, outcome.out, outcome.err.replace("'best'", "`best`"))
    assert_refused(outcome, says, hint)
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is not None, reason="TensorRT for RTX is installed"
)
def test_without_tensorrt_a_build_for_it_says_what_to_install(tmp_path: Path) -> None:
    outcome = dqexport("build", *QUICK_W4, "--target", "rtx-40", "-o", tmp_path / "b")
    assert_refused(outcome, "`tensorrt_rtx_bindings`", " tensorrt-rtx-cu13-bindings==")
    assert not (tmp_path / "b").exists()


def test_engines_of_a_bundle_that_has_none_are_refused(quick_bundle: Path) -> None:
    assert_refused(
        dqexport("engine", quick_bundle), "`cpu`, whose runtime has no engines", "targets"
    )


def test_a_group_that_leaves_a_rest_is_refused_for_tensorrt(tmp_path: Path) -> None:
    argv = (GOLDEN / "sdar", "--target", "rtx-40", "--mask-id", "196", "-o", tmp_path / "b")
    outcome = dqexport("build", *argv)
    assert_refused(outcome, "144 inputs", "--group")
    assert not (tmp_path / "b").exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    assert_refused(dqexport("build", tmp_path / "none", "-o", tmp_path / "b"), "none", "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held_out", [False, True])
def test_a_prompt_longer_than_the_canvas_is_refused(tmp_path: Path, held_out: bool) -> None:
    lengths = [8, 300] if held_out else [300]
    lines = [json.dumps({"ids": [5] * length}) for length in lengths]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    outcome = dqexport(
        "build", *QUICK_FP32, "--calib", tmp_path / "p.jsonl", "-o", tmp_path / "b"
    )  # fmt: skip
    assert_refused(outcome, "300 tokens", "--gen-length")
    assert "256" in outcome.err
    assert not (tmp_path / "b").exists()


def test_a_bundle_is_not_replaced_unasked(quick_bundle: Path) -> None:
    before = content(quick_bundle)
    outcome = dqexport("build", *QUICK_FP32, "-o", quick_bundle)
    assert_refused(outcome, "holds a bundle already", "--force")
    assert content(quick_bundle) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_foreign_folder_is_not_touched(tmp_path: Path, force: list[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    outcome = dqexport("build", *QUICK_FP32, *force, "-o", tmp_path)
    assert_refused(outcome, "is not empty and holds no bundle", "-o")
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_is_not_an_output_folder(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("file")
    assert_refused(dqexport("build", *QUICK_FP32, "-o", tmp_path / "b"), "is a file", "-o")
    assert (tmp_path / "b").read_text() == "file"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "shelf"
    out.mkdir()
    if os.geteuid() != 0:
        out.chmod(0o555)
        refused = dqexport("build", *QUICK_FP32, "-o", out / "b")
        out.chmod(0o755)
        assert_refused(refused, "Permission denied", "-o")
        return
    with tmpfs(out, "ro"):  # root may write to any folder that can be written
        assert_refused(dqexport("build", *QUICK_FP32, "-o", out / "b"), "Read-only", "-o")


def needed_disk() -> int:
    spec = open_checkpoint(GOLDEN / "llada").spec
    return estimate(spec, make_recipe("fp32", spec, QuantOptions(), "fp32"), 256).disk


def test_a_disk_that_is_too_small_is_refused_before_any_work(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", f"size={needed_disk() // 2}"):
        out = tmp_path / "disk" / "b"
        assert_refused(dqexport("build", *QUICK_FP32, "-o", out), "GiB", "-o")
        assert not out.exists()


def test_a_disk_that_fills_up_stops_the_build_which_goes_on_later(tmp_path: Path) -> None:
    """The estimate does not count the small files; a disk that holds no more than it fills up."""
    disk = tmp_path / "disk"
    with tmpfs(disk, f"size={needed_disk() + 65536}"):
        outcome = dqexport("build", *QUICK_FP32, "-o", disk / "b")
        assert_refused(outcome, "No space left on device", "it goes on")
        assert {entry.name for entry in (disk / "b").iterdir()} == {".work"}
        assert not (disk / "b" / ".work" / "draft").exists()
        remount = ["mount", "-o", f"remount,size={4 * needed_disk()}", str(disk)]
        subprocess.run(remount, check=True)
        again = build(*QUICK_FP32, "-o", disk / "b")
        assert "float decode" in outcome.err and "float decode" not in again.err
        build(*QUICK_FP32, "-o", tmp_path / "b")
        assert content(disk / "b") == content(tmp_path / "b")


def test_a_file_that_may_not_grow_stops_the_build(tmp_path: Path) -> None:
    """The same where nothing may be mounted: no file may be larger than half of the weights."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (needed_disk() // 2,) * 2)

    done = subprocess.run(
        [DQEXPORT, "build", *QUICK_FP32, "-o", str(tmp_path / "b")], capture_output=True,
        text=True, check=False, env=ONE_THREAD, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error: File too large" in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout
    assert not list((tmp_path / "b").rglob("manifest.json"))


def test_a_failed_gate_leaves_no_bundle(tmp_path: Path) -> None:
    out = tmp_path / "b"
    assert_refused(dqexport("build", *GATED, "-o", out), "The gate failed", "--no-gate")
    assert {entry.name for entry in out.iterdir()} == {".work"}
    assert not list(out.rglob("manifest.json"))
    assert_refused(dqexport("verify", out), "manifest.json", "finished bundle")


def test_no_gate_keeps_the_bundle_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(*GATED, "--no-gate", "-o", tmp_path / "b")
    assert "The gate failed" in caplog.text and "kept" in caplog.text
    gate = read_manifest(tmp_path / "b").gate
    assert gate is not None and not gate.passed
    assert gate.regret > gate.largest_regret or gate.kl > gate.largest_kl
    assert "FAILED" in dqexport("inspect", tmp_path / "b").out
