"""Errors of attention: what is coarser is further off, and floats are what scores cost alone."""

import json

import typer
from typer.testing import CliRunner

from tools.bench_attention_error import FORMS, MEASURES, main


def test_what_is_coarser_is_further_off() -> None:
    app = typer.Typer()
    app.command()(main)
    words = ["--keys", "256", "--queries", "16", "--seeds", "3", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows) == 3 * len(FORMS)
    for kind in {row["operands"] for row in rows}:
        found = {row["attention"]: row for row in rows if row["operands"] == kind}
        for measure in MEASURES:
            coarse, fine, floats = (
                found[name][measure]
                for name in ("keys and values of 4 bits", "integers, 8 bits", "values in floats")
            )
            assert 0 < floats < fine < coarse
            low, high = found["integers, 8 bits"][f"{measure}: least … most"]
            assert low <= fine <= high
