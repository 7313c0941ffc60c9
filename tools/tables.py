"""What the developer programs print: Markdown for readers, JSON for programs."""

import json
from collections.abc import Mapping, Sequence

Row = Mapping[str, object]


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table, one column a key of the first row; numbers with four figures."""
    keys = list(rows[0])
    lines = [keys, ["---"] * len(keys), *([_cell(row[key]) for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(rows: Sequence[Row], as_json: bool) -> str:
    return json.dumps(rows, indent=1) if as_json else markdown(rows)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, tuple | list):
        return " … ".join(map(_cell, value))
    return "" if value is None else str(value)
