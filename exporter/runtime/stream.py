"""Answers while they are decoded: their final text as it grows, or every commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from .answer import changes, edits_of, final_ids, padding
from .loop import Step
from .statistics import Clock
from .task import Task
from .text import Text


def unseen(task: Task, steps: Iterator[Step], clock: Clock) -> None:
    """Shows nothing."""
    for _ in steps:
        pass


@dataclass(frozen=True)
class TextStream:
    """Prints the text of the first row in reading order, as far as it is final."""

    text: Text

    def __call__(self, task: Task, steps: Iterator[Step], clock: Clock) -> None:
        stream = Stream(self.text)
        revises = task.settings.rule.revises
        for step in steps:
            changing = next(iter(step.window.tolist()), 0) if revises else None
            print(stream.more(final_ids(task, 0, changing)), end="", flush=True)
        print(stream.more(final_ids(task, 0), last=True), flush=True)


@dataclass(frozen=True)
class CommitStream:
    """Prints a line for each commit of the first row: step, position and the text of the token.

    They are parted by tabs; the text is a JSON string, without a tokenizer the id. A token that was
    replaced stands behind the new one.
    """

    text: Text | None

    def __call__(self, task: Task, steps: Iterator[Step], clock: Clock) -> None:
        pad = padding(task, 0)
        for step in steps:
            old = {position: was for _, position, was, _ in edits_of(step)}
            for _, position, token in changes(step):
                fields = [step.index, position - pad, self._name(token)]
                if position in old:
                    fields.append(self._name(old[position]))
                print(*fields, sep="\t", flush=True)

    def _name(self, token: int) -> str:
        if self.text is None:
            return str(token)
        return json.dumps(self.text.piece([token]), ensure_ascii=False)


class Stream:
    """Prints a growing text as it becomes final, never a part of a character."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._shown = ""

    def more(self, ids: list[int], last: bool = False) -> str:
        """What can be shown on top of before, now that `ids` are final; all of it at the `last`."""
        text = self._text.decode(ids)
        if not last:
            text = text.rstrip("\ufffd")  # the first bytes of a character
        if not text.startswith(self._shown):  # the tokenizer joins these tokens differently
            return "\n" + text if last else ""
        new, self._shown = text[len(self._shown) :], text
        return new
