"""The runner of passes: order, records, notes on errors."""

import logging
from dataclasses import dataclass

import pytest

from passes.base import Record, Stats, run


@dataclass(frozen=True)
class Append:
    number: int

    def __call__(self, model: list[int], /) -> Stats:
        model.append(self.number)
        return {"length": len(model)}


def no_three(model: list[int]) -> None:
    if 3 in model:
        raise ValueError(f"a three in {model}")


def test_passes_run_in_order_and_are_recorded() -> None:
    model: list[int] = []
    records = run([Append(2), Append(1)], model, no_three)
    assert model == [2, 1]
    assert [(record.step, record.stats) for record in records] == [
        ("Append(number=2)", {"length": 1.0}),
        ("Append(number=1)", {"length": 2.0}),
    ]
    assert all(isinstance(record, Record) and record.seconds >= 0 for record in records)


def test_an_error_names_the_pass_and_those_before_it() -> None:
    model: list[int] = []
    with pytest.raises(ValueError, match="a three") as caught:
        run([Append(1), Append(3), Append(4)], model, no_three)
    assert caught.value.__notes__ == ["in pass Append(number=3), after ['Append(number=1)']"]
    assert model == [1, 3], "the pass after the failed one must not run"


def test_each_pass_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run([Append(1), Append(2)], [], no_three)
    assert [line.split("  ")[0] for line in caplog.messages] == [
        "[1/2] Append(number=1)",
        "[2/2] Append(number=2)",
    ]
