"""The bench of resident memory: its budget, and that its command runs."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tools.bench_resident import REST, budget, main
from tools.random_checkpoint import Preset


def test_the_budget_counts_the_embedding_in_8_bits(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "weights.bin").write_bytes(bytes(50_000))
    shape = Preset.TINY.shape
    table = shape.vocab * shape.width
    assert budget(tmp_path, Preset.TINY, 0, 8) == 50_000 + REST
    assert budget(tmp_path, Preset.TINY, 0, 16) == 50_000 - table + REST
    kept = budget(tmp_path, Preset.TINY, 10, 8) - budget(tmp_path, Preset.TINY, 0, 8)
    assert kept == 2 * 4 * shape.layers * shape.width * 10  # keys and values in fp32


def test_command_prints_a_row_a_bundle_and_cache() -> None:
    app = typer.Typer()
    app.command()(main)
    options = "--recipe w4a16-rtn --model tiny --prompt 8 --gen-length 8 --json"
    done = CliRunner().invoke(app, options.split())
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [(row["embedding"], row["cache"]) for row in rows] == [
        (f"{bits} bits", cache) for bits in (16, 8) for cache in ("none", "dual")
    ]
    for row in rows:
        assert 0 < row["of it anonymous"] < row["resident MB"]
        assert row["% of budget"] == pytest.approx(100 * row["resident MB"] / row["budget MB"])
