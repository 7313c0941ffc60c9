"""What is told about a row: its tokens and its trace, in its own coordinates without padding."""

from __future__ import annotations

from dataclasses import dataclass

from .ending import first_stop
from .task import Task


@dataclass(frozen=True)
class Answer:
    """One prompt's result; positions count from the first token of the prompt."""

    ids: list[int]  # prompt and generated region
    new: list[int]  # generated region, with early stop cut after the first end-of-text token
    shown: list[int]  # what becomes text: `new`, or everything when the prompt had blanks
    trace: list[list[int]]  # [step, position, id], in the order of the commits


Trace = list[tuple[int, int, int, int]]  # (step, row, position, id)


def answers(task: Task, trace: Trace) -> list[Answer]:
    """One `Answer` a row."""
    return [_answer(task, row, trace) for row in range(len(task.canvas))]


def _answer(task: Task, row: int, trace: Trace) -> Answer:
    pad = padding(task, row)
    end = answer_end(task, row)
    ids = [int(i) for i in task.canvas[row]]
    own = [[step, position - pad, i] for step, r, position, i in trace if r == row]
    return Answer(ids[pad:], ids[task.prompt_length : end], ids[shown_from(task, row) : end], own)


def padding(task: Task, row: int) -> int:
    """Padded positions at the left of a row."""
    return int((~task.key_mask[row]).sum())


def shown_from(task: Task, row: int) -> int:
    """Where the text of an answer starts: with blanks in the prompt at the prompt's first token."""
    blanks = task.blank[row, : task.prompt_length].any()
    return padding(task, row) if bool(blanks) else task.prompt_length


def answer_end(task: Task, row: int) -> int:
    """Where an answer ends: after its first end-of-text token with early stop."""
    if not task.settings.early_stop:
        return int(task.canvas.shape[1])
    stop = int(first_stop(task.canvas[[row]], task.prompt_length, task.model)[0])
    return min(stop + 1, int(task.canvas.shape[1]))


def final_ids(task: Task, row: int) -> list[int]:
    """The shown tokens up to the first mask: they will not change any more."""
    masked = task.masked()[row]
    start, end = shown_from(task, row), answer_end(task, row)
    stop = start + int(masked[start:end].argmax()) if masked[start:end].any() else end
    return [int(i) for i in task.canvas[row, start:stop]]
