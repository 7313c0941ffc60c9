"""What is told about a row: its tokens and its trace, in its own coordinates without padding."""

from __future__ import annotations

from dataclasses import dataclass

from .ending import first_stop
from .loop import Step
from .task import Task
from .text import Text


@dataclass(frozen=True)
class Answer:
    """One prompt's result; positions count from the first token of the prompt."""

    ids: list[int]  # prompt and generated region
    new: list[int]  # generated region, with early stop cut after the first end-of-text token
    shown: list[int]  # what becomes text: `new`, or everything when the prompt had blanks
    trace: list[list[int]]  # [step, position, id], in the order of the commits

    def as_text(self, text: Text | None) -> str:
        """The text; without a tokenizer the ids."""
        return ",".join(map(str, self.shown)) if text is None else text.decode(self.shown)

    def as_json(self, text: Text | None) -> dict[str, object]:
        """By name; `text` is None without a tokenizer."""
        return {
            "ids": self.ids,
            "new": self.new,
            "text": None if text is None else text.decode(self.shown),
            "trace": self.trace,
        }


Trace = list[tuple[int, int, int, int]]  # (step, row, position, id)


Change = tuple[int, int, int]  # (row, position, id)


def edits_of(step: Step) -> list[tuple[int, int, int, int]]:
    """What a step replaced: (row, position, old id, new id)."""
    return list(getattr(step, "edits", ()))


def changes(step: Step) -> list[Change]:
    """The commits of a step and the edits, which replace tokens that stand, as commits."""
    edits = [(row, position, new) for row, position, _, new in edits_of(step)]
    return step.commits + [edit for edit in edits if edit not in step.commits]


def moved(step: Step, row: int, position: int) -> int:
    """Where a position of a row is once the masks of `step` are inserted."""
    for grown, start, count in step.grown:
        position += count * (grown == row and position >= start)
    return position


def answers(task: Task, trace: Trace) -> list[Answer]:
    """One `Answer` a row."""
    return [_answer(task, row, trace) for row in range(len(task.canvas))]


def _answer(task: Task, row: int, trace: Trace) -> Answer:
    pad = padding(task, row)
    end = answer_end(task, row)
    ids = [int(i) for i in task.canvas[row]]
    own = [[step, position - pad, i] for step, r, position, i in trace if r == row]
    return Answer(
        ids[pad : row_end(task, row)],
        ids[task.prompt_length : end],
        ids[shown_from(task, row) : end],
        own,
    )


def padding(task: Task, row: int) -> int:
    """Padded positions at the left of a row."""
    return int(task.key_mask[row].argmax())


def row_end(task: Task, row: int) -> int:
    """Where a row ends: behind it there may be padding too."""
    return int(task.canvas.shape[1] - task.key_mask[row, ::-1].argmax())


def shown_from(task: Task, row: int) -> int:
    """Where the text of an answer starts: with blanks in the prompt at the prompt's first token."""
    blanks = task.blank[row, : task.prompt_length].any()
    return padding(task, row) if bool(blanks) else task.prompt_length


def answer_end(task: Task, row: int) -> int:
    """Where an answer ends: `gen_length` behind the prompt, where block-causal models may have
    filled their last block further; with early stop after its first end-of-text token.
    """
    end = min(row_end(task, row), task.prompt_length + task.settings.gen_length)
    if not task.settings.early_stop:
        return end
    stop = int(first_stop(task.canvas[[row]], task.prompt_length, task.model)[0])
    return min(stop + 1, end)


def final_ids(task: Task, row: int, changing: int | None = None) -> list[int]:
    """The shown tokens up to the first mask, which will not change any more.

    `changing` is the first position that may, where a sampler replaces tokens that stand.
    """
    masked = task.masked()[row]
    start, end = shown_from(task, row), answer_end(task, row)
    if changing is not None:
        end = max(start, min(end, changing))
    stop = start + int(masked[start:end].argmax()) if masked[start:end].any() else end
    return [int(i) for i in task.canvas[row, start:stop]]
