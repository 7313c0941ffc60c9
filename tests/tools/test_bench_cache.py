"""The bench of caches on a tiny model: every call runs, and shares are those of one round."""

import json

import pytest
import typer
from typer.testing import CliRunner

from tools.bench_cache import main, race, rows


@pytest.mark.parametrize("kv_bits", [16, 4])
def test_command_times_every_call(kv_bits: int) -> None:
    options = "--model tiny --length 32 --block 8 --rounds 2 --threads 1 --json --kv-bits"
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [*options.split(), str(kv_bits)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["threads"] == 1
    assert len(found["rows"]) == 5
    assert found["rows"][0]["share of the whole"] == 1
    assert all(row["ms"] > 0 for row in found["rows"])


def test_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    taken = race({name: lambda name=name: calls.append(name) for name in "ab"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abababab"
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}


def test_shares_are_taken_within_a_round() -> None:
    """A machine that gets slower does not make the second call look dear."""
    found = rows({"a": [1.0, 2.0, 8.0], "b": [0.5, 1.0, 4.0]})
    assert [row["share of the whole"] for row in found] == [1.0, 0.5]
    assert found[1]["ms"] == 1000.0
    assert found[1]["least … most"] == (0.5, 0.5)
