"""The benchmark of CUDA kernels: what of it needs no GPU, and all of it where there is one."""

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tools.bench_kernels import NOT_MEASURED, Machine, bits_of, copies, main, predictions, row_of

MACHINE = Machine(bandwidth=1e9, rate=1e12)
APP = typer.Typer()
APP.command()(main)


def test_the_floor_is_what_takes_longer() -> None:
    """4 bits and an eighth of 4096 squared are 8.65 MB; 1 row moves 16 KB beside them."""
    moved = 4096 * 4096 * (4 + 8 / 128) / 8 + 2 * 8192
    assert MACHINE.floor(1, 4096, 4096, bits_of(4)) == pytest.approx(moved / 1e9)
    assert MACHINE.floor(10**6, 64, 64, 8) == pytest.approx((4096 + 2 * 128 * 10**6) / 1e9)
    fast = Machine(bandwidth=1e15, rate=1e12)
    assert fast.floor(1000, 4096, 4096, 8) == pytest.approx(1000 * 4096**2 / 1e12)


def test_copies_are_more_than_a_cache_holds() -> None:
    for size in (1 << 10, 8 << 20, 600 << 20):
        assert copies(size) * size >= 256 << 20
        assert copies(size) >= 2


def test_ratios_are_those_of_the_same_round() -> None:
    seconds = {"torch bf16": [2.0, 4.0, 9.0], "W4A8": [1.0, 1.0, 3.0]}
    row = row_of(MACHINE, "LLaDA-8B q", 1, "W4A8", bits_of(4), seconds)
    assert row["times bf16"] == 3.0
    assert row["least … most"] == (2.0, 4.0)
    assert row["% of floor"] == pytest.approx(100 * MACHINE.floor(1, 4096, 4096, bits_of(4)) / 1.0)


def test_boards_are_predicted_at_the_same_share_of_their_floors() -> None:
    rows = [{"linear": "LLaDA-8B q", "rows": 32, "kernel": "W4A8", "% of floor": 50.0},
            {"linear": "LLaDA-8B q", "rows": 32, "kernel": "W8A8", "% of floor": 50.0}]  # fmt: skip
    found = {row["board"]: row for row in predictions(rows)}
    assert {"jetson-orin", "jetson-thor"} <= set(found)
    assert len(found) == len(predictions(rows))
    orin = found["jetson-orin"]
    moved = 4096 * 4096 * bits_of(4) / 8 + 2 * 32 * 8192
    assert orin["floor µs"] == pytest.approx(moved / 204.8e9 * 1e6)
    assert isinstance(orin["floor µs"], float)
    assert orin["predicted µs"] == pytest.approx(2 * orin["floor µs"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = CliRunner().invoke(APP, [])
    assert done.exit_code == NOT_MEASURED
    assert "no GPU" in done.output


@pytest.mark.gpu
def test_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--linear", "SDAR-4B q", "--rows", "32", "--rounds", "1", "--calls", "2", "--json"]
    done = CliRunner().invoke(APP, argv)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["kernel"] for row in found["rows"]} == {
        "torch bf16", "W4A8", "W8A8", "torch _int_mm",
    }  # fmt: skip
    assert all(row["µs"] > 0 for row in found["rows"])
