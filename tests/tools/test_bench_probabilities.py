"""The experiment on probabilities tells the two grids apart, and says how far seeds agree."""

import json

import typer
from typer.testing import CliRunner

from tools.bench_probabilities import main


def test_small_shares_vanish_on_the_static_grid_alone() -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--keys", "1024", "--bits", "8", "--seeds", "3", "--json"])
    assert done.exit_code == 0, done.output
    found = {row["head"]: row for row in json.loads(done.stdout)}
    assert list(found) == ["diffuse", "mixed", "sharp"]
    # 1024 keys get about a thousandth each, less than half a step of 1 / 255
    assert found["diffuse"]["static: error %"] > 50
    for row in found.values():
        low, high = row["row: least … most"]
        assert low <= row["row: error %"] <= high < row["static: error %"]
