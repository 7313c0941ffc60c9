"""What kernels are meant to reach, and whether a table of measurements shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # of a table: a quantity, or None where it could not be measured


@dataclass(frozen=True)
class Goal:
    """A quantity of a row of a table that should be at least so much."""

    name: str
    quantity: str
    least: float

    def share(self, row: Row) -> float | None:
        """Of what is wanted; None: not measured."""
        found = row[self.quantity]
        return None if found is None else float(found) / self.least


def verdicts(row: Row, goals: Sequence[Goal]) -> str:
    """Of one row."""
    said = {None: "not measured", False: "missed", True: "met"}
    shares = [(goal, goal.share(row)) for goal in goals]
    return "; ".join(
        f"{said[None if share is None else share >= 1]}: {goal.name}" for goal, share in shares
    )


def summary(
    table: Sequence[Row], goals_of: Callable[[Row], Sequence[Goal]], place: Callable[[Row], str]
) -> list[dict[str, object]]:
    """How many rows of each kernel met each goal, and the worst of them, at `place`."""
    found: dict[tuple[str, Goal], list[tuple[float, Row]]] = {}
    for row in table:
        for goal in goals_of(row):
            share = goal.share(row)
            if share is not None:
                found.setdefault((row["kernel"], goal), []).append((share, row))
    result = []
    for (kernel, goal), all_of in found.items():
        _, worst = min(all_of, key=lambda each: each[0])
        result.append({
            "kernel": kernel, "goal": goal.name, "met": sum(share >= 1 for share, _ in all_of),
            "of": len(all_of), "worst": worst[goal.quantity], "at": place(worst),
        })  # fmt: skip
    return result
