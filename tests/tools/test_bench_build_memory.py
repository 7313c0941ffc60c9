"""What is measured of a process that says what it allocates, and one small build."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from tools.bench_build_memory import main, slope
from tools.memory_watch import watch

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

MB = 10**6
GROWS = """
import sys, time
def stage(name, size):
    print(f"{name}: 1 step", file=sys.stderr, flush=True)
    held = bytearray(size)  # zeros are pages only once they are written
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(0.4)
stage("small", 10_000_000)
stage("large", 200_000_000)
stage("after", 10_000_000)
"""


def test_peaks_are_told_by_stage() -> None:
    seen = watch([sys.executable, "-c", GROWS])
    assert {"small", "large", "after"} <= seen.stages.keys()
    assert seen.worst_stage == "large"
    assert seen.stages["large"].anonymous >= 200 * MB
    assert seen.stages["small"].anonymous < 100 * MB
    assert seen.peak.resident <= seen.high_water  # no children: samples never beat the kernel
    assert seen.high_water >= 200 * MB


def test_children_count() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GROWS!r}])"
    seen = watch([sys.executable, "-c", parent])
    assert seen.peak.anonymous >= 200 * MB > seen.high_water


def test_a_failing_command_is_told_with_its_words() -> None:
    with pytest.raises(RuntimeError, match="no such model"):
        watch([sys.executable, "-c", "raise SystemExit('no such model')"])


def test_slope_is_the_growth_a_layer() -> None:
    assert slope([4, 8, 16], [100, 112, 136]) == pytest.approx(3)
    assert slope([4], [100]) is None


def test_command_builds_and_reports() -> None:
    """A tiny build stays within its budget: next to nothing beside the base."""
    options = "--preset tiny --layers 1 --recipe w4a16-rtn --prompt 4 --gen-length 4 --steps 1"
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [*options.split(), "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert 0 < row["anonymous MB"] < row["peak MB"]
    assert "gate" in row["MB by stage"]  # shorter stages may pass between two samples
