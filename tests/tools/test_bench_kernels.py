"""The benchmark of CUDA kernels: what of it needs no GPU, and some of it where there is one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from ort_ops.build_cuda import CudaBuildError
from tools.attention_forms import NAMED as ATTENTION
from tools.attention_forms import SHAPES
from tools.bench_attention_gpu import row_of as attention_row
from tools.bench_kernels import (
    NOT_MEASURED,
    Piece,
    Results,
    main,
    measure,
    report,
)
from tools.bench_linears_gpu import BASE, LINEARS
from tools.bench_linears_gpu import NAMED as LINEAR
from tools.bench_linears_gpu import row_of as linear_row
from tools.gpu_machine import Machine
from tools.gpu_timing import CACHE, copies

MACHINE = Machine("made up", bandwidth=1e12, int8=1e14, halves=5e13)
APP = typer.Typer()
APP.command()(main)


def some_results() -> Results:
    seconds = {BASE.name: [9e-5], "W4A8": [3e-5]}
    made = Results(MACHINE, absent={"torchao int4": "ModuleNotFoundError: No module"})
    made.linears = [linear_row(MACHINE, "LLaDA-8B q", 1, LINEAR[name], seconds) for name in seconds]
    times = {"SDPA flash, bf16": [4e-4], "8 bits": [2e-4]}
    made.attention = [
        attention_row(MACHINE, SHAPES[0], ATTENTION[name], times, {"normal": (0.01, 1e-5)})
        for name in times
    ]
    return made


def test_copies_are_more_than_a_cache_holds() -> None:
    for size in (1 << 10, 8 << 20, 600 << 20):
        assert copies(size) * size >= CACHE
        assert copies(size) >= 2


def test_a_report_has_all_tables() -> None:
    text = report(some_results())
    for words in ("| LLaDA-8B q | 4096x4096 | 1 | W4A8 | 30 | 3 |", "Goals:", "missed: 70 %",
                  "| 8 bits | 200 | 2 |", "predicted, not measured", "jetson-thor",
                  "* torchao int4: ModuleNotFoundError"):  # fmt: skip
        assert words in text


def test_an_empty_report_is_the_machine() -> None:
    assert report(Results(MACHINE)).count("\n") == 0


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    made = some_results()
    made.write(tmp_path / "below" / "gpu.json")
    found = Results.read(tmp_path / "below" / "gpu.json")
    assert report(found) == report(made)
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["gpu.json"]


def piece(name: str, log: list[str]) -> Piece:
    def work() -> tuple[list[dict[str, Any]], dict[str, str]]:
        log.append(name)
        seconds = {BASE.name: [1.0]}
        return [linear_row(MACHINE, name, 8, LINEAR[BASE.name], seconds)], {"peer": "missing"}

    return Piece("linears", f"{name}, 8 rows", work)


def test_a_run_ends_in_time_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Each piece takes a second of a clock of our own."""
    log: list[str] = []
    place, todo = tmp_path / "gpu.json", [piece(name, log) for name in LINEARS]
    names = list(LINEARS)

    def clock() -> float:
        return len(log)

    left = measure(todo, Results(MACHINE), place, 3, clock)
    assert log == names[:3] and left == [f"{name}, 8 rows" for name in names[3:]]
    again = Results.read(place)
    assert again.absent == {"peer": "missing"}
    assert measure(todo, again, place, 100, clock) == []
    assert log == names
    assert [row["linear"] for row in Results.read(place).linears] == names


def test_a_plan_needs_no_gpu() -> None:
    argv = ["--plan", "jetson-orin", "--linear", "SDAR-4B q", "--rows", "32", "--keys", "256"]
    done = CliRunner().invoke(APP, argv)
    assert done.exit_code == 0, done.output
    assert "Floors on jetson-orin by calculation: 204.8 GB/s" in done.output
    assert "| SDAR-4B q | 32 | W4A8 | bytes |" in done.output
    assert "| B 1, Q 256, S 256, 32/32 heads | cache of 4 bits |" in done.output
    assert "S 512" not in done.output


def test_a_plan_for_an_unknown_board() -> None:
    done = CliRunner().invoke(APP, ["--plan", "orin"])
    assert done.exit_code == 2 and "jetson-orin" in done.output


def test_without_nvcc_it_names_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prebuild(sm: int) -> Path:
        raise CudaBuildError(f"no nvcc for {sm}")

    monkeypatch.setattr("tools.bench_kernels.prebuild", prebuild)
    done = CliRunner().invoke(APP, ["--compile", "87", str(tmp_path / "kernels.so")])
    assert done.exit_code == 2 and "no nvcc for 87" in done.output
    assert "--compile 87" in done.output and not [*tmp_path.iterdir()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = CliRunner().invoke(APP, [])
    assert done.exit_code == NOT_MEASURED
    assert "no GPU" in done.output


@pytest.mark.gpu
def test_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--linear", "SDAR-4B q", "--rows", "32", "--keys", "256", "--rounds", "1", "--calls",
            "2", "--out", "gpu.json"]  # fmt: skip
    done = CliRunner().invoke(APP, argv)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {"torch bf16", "W4A8", "W8A8", "torch _int_mm"} <= {
        r["kernel"] for r in found["linears"]
    }
    assert {"SDPA flash, bf16", "8 bits"} <= {row["kernel"] for row in found["attention"]}
    assert all(row["µs"] > 0 for row in found["linears"] + found["attention"])
    ours = [row for row in found["attention"] if row["kernel"] == "8 bits"]
    # eight bits of queries, keys, values and probabilities: some percent of a normal y
    assert all(row["error, normal"] < 0.1 for row in ours)
