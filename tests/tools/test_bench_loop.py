"""The bench of whole answers on a tiny model: calls are counted by kind, the plain loop is 1."""

import json

import pytest
import typer
from typer.testing import CliRunner

from exporter.runtime.settings import Settings
from tools.bench_loop import Contestant, main


def test_command_prints_a_row_a_contestant() -> None:
    options = "--model tiny --prompt 8 --gen-length 16 --block 8 --rounds 1 --threads 1 --tokens 4"
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [*options.split(), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["rows"]
    # four bundles, each plain and with a cache at one and at four a call, and torch
    assert len(found) == 4 * 3 + 1
    assert found[0]["times the plain loop"] == 1
    assert all(row["s an answer"] > 0 for row in found)


def test_an_answer_is_its_calls_times_their_medians() -> None:
    one = Contestant("x", None, Settings(), None)  # type: ignore[arg-type]
    one.seconds |= {24: [3.0, 1.0, 2.0], 8: [0.5]}
    one.calls = {24: 2, 8: 6}
    assert one.answer(None) == pytest.approx(2 * 2.0 + 6 * 0.5)
    one.seconds = {24: [3.0, 1.0, 2.0]}
    assert one.answer(16) == 32.0
