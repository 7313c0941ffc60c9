"""Shares of right answers by task, with intervals, and against another run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.agreement import wilson
from exporter.evaluation.generation import Outcome
from exporter.evaluation.paired import count_pairs, difference_interval, mcnemar

ALL = "all"  # every task together


@dataclass(frozen=True)
class Versus:
    """A share minus that of another run on the same examples."""

    difference: float
    interval: tuple[float, float]  # 95 %, Newcombe for pairs
    gained: int  # right here alone
    lost: int  # right there alone
    p: float  # McNemar, exact


@dataclass(frozen=True)
class Accuracy:
    """How much of a task is answered right. None: no example has an answer."""

    task: str
    prompts: int
    checked: int  # those with an answer
    right: int
    accuracy: float | None
    interval: tuple[float, float] | None  # 95 %, Wilson
    tokens: int
    forwards: int
    versus: Versus | None


def accuracies(ours: Sequence[Outcome], theirs: Sequence[Outcome] | None) -> list[Accuracy]:
    """One a task, in the order in which tasks occur, and of several tasks one over all."""
    tasks = list(dict.fromkeys(outcome.task for outcome in ours))
    found = [
        _of(
            task,
            [outcome for outcome in ours if outcome.task == task],
            theirs and [outcome for outcome in theirs if outcome.task == task],
        )
        for task in tasks
    ]
    return found if len(tasks) < 2 else [*found, _of(ALL, ours, theirs)]


def versus(ours: Iterable[bool], theirs: Iterable[bool]) -> Versus:
    """Answers to the same examples in one order, at least one."""
    pairs = count_pairs(list(ours), list(theirs))
    return Versus(
        pairs.difference, difference_interval(pairs), pairs.ours, pairs.theirs, mcnemar(pairs)
    )


def _of(task: str, ours: Sequence[Outcome], theirs: Sequence[Outcome] | None) -> Accuracy:
    right = [outcome.correct for outcome in ours if outcome.correct is not None]
    other = None
    if theirs is not None and right:
        other = versus(right, [o.correct for o in theirs if o.correct is not None])
    return Accuracy(
        task=task,
        prompts=len(ours),
        checked=len(right),
        right=sum(right),
        accuracy=sum(right) / len(right) if right else None,
        interval=wilson(sum(right), len(right)) if right else None,
        tokens=sum(outcome.tokens for outcome in ours),
        forwards=sum(outcome.forwards for outcome in ours),
        versus=other,
    )
