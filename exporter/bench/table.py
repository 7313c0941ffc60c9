"""What was measured, for readers and for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from exporter.bench.contestants import TORCH
from exporter.bench.forwards import Load
from exporter.bench.measure import Measured, Outcome
from exporter.bench.timing import Spread
from exporter.runtime.built_engines import BuiltEngine

LAYERS = 20  # that are shown of each forward
BASELINES = (TORCH, "cpu", "cuda")  # the first of these that was measured


def baseline_of(outcomes: Sequence[Outcome]) -> str | None:
    """What the others are compared with; None where nothing was measured."""
    names = [outcome.name for outcome in outcomes]
    return next((name for name in (*BASELINES, *names) if name in names), None)


def as_json(measured: Measured, engines: Sequence[BuiltEngine], target: str) -> dict[str, Any]:
    """All of it; `times` are how many times as fast as the baseline something is."""
    baseline = baseline_of(measured.outcomes)
    return {
        "target": target,
        "baseline": baseline,
        "runs_on": {outcome.name: outcome.runs_on for outcome in measured.outcomes},
        "forwards": [
            {
                "contestant": outcome.name,
                **asdict(forward.load),
                "milliseconds": asdict(forward.milliseconds),
                "floor": forward.floor,
                "times": _times(measured.outcomes, baseline, forward.load, forward.milliseconds),
                "layers": forward.layers and [asdict(layer) for layer in forward.layers],
            }
            for outcome in measured.outcomes
            for forward in outcome.forwards
        ],
        "answers": [
            {
                "contestant": outcome.name,
                **asdict(outcome.answers),
                "times": _times_as_many(measured.outcomes, baseline, outcome),
            }
            for outcome in measured.outcomes
            if outcome.answers is not None
        ],
        "engines": [asdict(engine) for engine in engines],
        "unmeasured": measured.unmeasured,
    }


def _times(
    outcomes: Sequence[Outcome], baseline: str | None, load: Load, taken: Spread
) -> float | None:
    for outcome in outcomes:
        for forward in outcome.forwards:
            if (outcome.name, forward.load) == (baseline, load):
                return forward.milliseconds.median / taken.median
    return None


def _times_as_many(
    outcomes: Sequence[Outcome], baseline: str | None, mine: Outcome
) -> float | None:
    for outcome in outcomes:
        if outcome.name == baseline and outcome.answers and mine.answers:
            theirs = outcome.answers.tokens_per_second.median
            return mine.answers.tokens_per_second.median / theirs
    return None


def tables(found: dict[str, Any]) -> Iterator[Table | str]:
    """What `as_json` holds, for a terminal."""
    versus = f"× {found['baseline']}"
    if found["forwards"]:
        yield _table(
            "one forward", ["", "graph", "fed", "canvas", "ms", "quartiles", versus, "floor, ms"],
            [
                [one["contestant"], one["graph"], one["tokens"], one["canvas"],
                 *_spread(one["milliseconds"]), one["times"], one["floor"]]
                for one in found["forwards"]
            ],
        )  # fmt: skip
    if found["answers"]:
        yield _table(
            "answers, one prompt at a time",
            ["", "tokens/s", "quartiles", versus, "forwards", "tokens", "first token, s"],
            [
                [one["contestant"], *_spread(one["tokens_per_second"]), one["times"],
                 one["forwards"], one["tokens"], one["first_token_seconds"]]
                for one in found["answers"]
            ],
        )  # fmt: skip
    if found["engines"]:
        rows = [
            [one["path"], f"{one['runtime']} {one['version']}", "/".join(map(str, one["sm"])),
             one["bytes"] and one["bytes"] / 2**20, one["seconds"]]
            for one in found["engines"]
        ]  # fmt: skip
        yield _table("engines", ["", "built by", "SM", "MiB", "build, s"], rows)
    for one in found["forwards"]:
        if one["layers"]:
            yield _layers(one)
    for name, ran in found["runs_on"].items():
        yield f"{name} ran: {'; '.join(ran)}"
    for name, reason in found["unmeasured"].items():
        yield f"not measured here: {name}: {reason}"


def _layers(one: dict[str, Any]) -> Table:
    whole = sum(layer["milliseconds"] for layer in one["layers"])
    title = f"layers of {one['graph']}, {one['tokens']} of {one['canvas']}: {one['contestant']}"
    rows = [
        [layer["name"], layer["kind"], layer["milliseconds"], 100 * layer["milliseconds"] / whole]
        for layer in one["layers"][:LAYERS]
    ]
    return _table(title, ["", "kind", "ms", "%"], rows)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for number, head in enumerate(heads):
        numbers = all(isinstance(row[number], int | float | None) for row in rows)
        table.add_column(head, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _spread(spread: dict[str, float]) -> tuple[float, str]:
    return spread["median"], f"{_cell(spread['lower'])} … {_cell(spread['upper'])}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)
