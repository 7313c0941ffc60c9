"""`--watch`: the canvas of one prompt on the terminal, drawn in place while it is unmasked."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .answer import changes, edits_of, moved, padding, row_end
from .canvas_view import (
    DONE,
    EDITED,
    FRESH,
    MASK,
    OPEN,
    PROMPT,
    Line,
    line_of,
    make_cells,
    scroll,
    wrap,
)
from .ending import stop_ids
from .errors import UserError
from .loop import Step
from .statistics import Clock, Statistics
from .task import Task
from .text import Text

COLOURS = {PROMPT: "2", MASK: "2", OPEN: "", DONE: "", FRESH: "30;42", EDITED: "30;45"}
# NO_COLOR leaves weight, underline and reversal: https://no-color.org
PLAIN = {PROMPT: "2", MASK: "2", OPEN: "", DONE: "", FRESH: "7", EDITED: "4;7"}
HIDE, SHOW, CLEAR = "\x1b[?25l", "\x1b[?25h", "\x1b[2J\x1b[H"
TO_LINE_END, TO_SCREEN_END = "\x1b[K", "\x1b[J"


@dataclass(frozen=True)
class Watch:
    """Draws the first row after each step; a step stays for `seconds` at least."""

    text: Text | None
    seconds: float
    keep: bool = True  # leave the last picture where it is, or take it away

    def __call__(self, task: Task, steps: Iterator[Step], clock: Clock) -> None:
        with _screen() as screen:
            screen.draw(Picture(task, self.text, None, clock.read()), 0)
            for step in steps:
                screen.draw(Picture(task, self.text, step, clock.read()), self.seconds)
            screen.draw(Picture(task, self.text, None, clock.read()), self.seconds)
            if not self.keep:
                screen.erase()


def check_terminal() -> None:
    """Raises `UserError` where nothing can be drawn."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        raise UserError(
            "--watch draws on a terminal, and the output is none that can be drawn on",
            hint="drop --watch; --stream commits prints every commit",
        )


@dataclass(frozen=True)
class Picture:
    """What is to be drawn: the first row of a canvas as it is now, and the step that made it so."""

    task: Task
    text: Text | None
    step: Step | None  # None before the first and after the last
    statistics: Statistics

    def header(self) -> str:
        """One line of figures."""
        now, blank = self.statistics, self.task.blank[0] & self.task.key_mask[0]
        left = int(self.task.masked()[0].sum())
        at = f"step {self.step.index + 1}  " if self.step else ""
        edits = f"  {now.edits} edits" if now.edits else ""
        skipped = f"  {now.skipped} skipped" if now.skipped else ""
        return (
            f"{at}{int(blank.sum()) - left}/{int(blank.sum())} tokens  {now.forwards} forwards"
            f"  {now.tokens_per_forward:.2f} tokens/forward  {now.seconds:.1f} s{edits}{skipped}"
        )

    def kinds(self) -> list[str]:
        """How each position of the canvas [L] is to be shown."""
        blank, masked = self.task.blank[0], self.task.masked()[0]
        kinds = [DONE if b else PROMPT for b in blank]
        window = set() if self.step is None else {int(p) for p in self.step.window}
        for position in masked.nonzero()[0]:
            kinds[position] = OPEN if int(position) in window else MASK
        if self.step is not None:
            for row, position, _ in self.step.commits:
                kinds[moved(self.step, row, position)] = FRESH
            for _, position, _, _ in edits_of(self.step):
                if not masked[position]:  # some rules put the mask back
                    kinds[position] = EDITED
        return kinds

    def lines(self, width: int) -> list[Line]:
        """The row without its padding."""
        pad, end = padding(self.task, 0), row_end(self.task, 0)
        ids = [int(i) for i in self.task.canvas[0]]
        cells = make_cells(ids, self.kinds(), stop_ids(self.task.model), self.text)
        return wrap([cell for cell in cells if pad <= cell.first < end], width)

    def focus(self, lines: Sequence[Line], height: int) -> tuple[int, int]:
        """The lines that should be in view: the active block, or what changed in a large one."""
        if self.step is None:
            masked = self.task.masked()[0].nonzero()[0]
            at = line_of(lines, int(masked[0])) if len(masked) else len(lines) - 1
            return at, at
        fed = [line_of(lines, int(p)) for p in self.step.window]
        if fed and max(fed) - min(fed) < height:
            return min(fed), max(fed)
        changed = [line_of(lines, p) for _, p, _ in changes(self.step)] or fed or [0]
        return min(changed), max(changed)


class Screen:
    """The lines below the cursor's first place, drawn over again without flicker."""

    def __init__(self) -> None:
        self._codes = PLAIN if os.environ.get("NO_COLOR") else COLOURS
        self._size = shutil.get_terminal_size()
        self._height = 0  # lines drawn so far
        self._top = 0  # line of the canvas that is drawn first
        self._since = float("-inf")

    def draw(self, picture: Picture, seconds: float) -> None:
        """Draw it, once the last one has been there for `seconds`."""
        time.sleep(max(0.0, self._since + seconds - time.monotonic()))
        before, self._size = self._size, shutil.get_terminal_size()
        home = self._home() if self._size == before else CLEAR  # the terminal broke our lines anew
        drawn = self.paint(picture, *self._size)
        text = "".join(f"{line}{TO_LINE_END}\n" for line in drawn)
        _write(home + text + TO_SCREEN_END)  # all at once: no half of it is ever seen
        self._height, self._since = len(drawn), time.monotonic()

    def paint(self, picture: Picture, columns: int, rows: int) -> list[str]:
        """At most `rows` - 1 lines of less than `columns`: the last ones make terminals scroll."""
        width, height = max(columns - 1, 2), max(rows - 2, 1)
        lines = picture.lines(width)
        first, last = picture.focus(lines, height)
        self._top = scroll(self._top, len(lines), height, first, last)
        shown = [self._painted(line) for line in lines[self._top : self._top + height]]
        return [picture.header()[:width], *shown][: max(rows - 1, 1)]

    def erase(self) -> None:
        """Take the picture away."""
        _write(self._home() + TO_SCREEN_END)
        self._height = 0

    def _home(self) -> str:
        return f"\r\x1b[{self._height}A" if self._height else "\r"

    def _painted(self, line: Line) -> str:
        parts = []
        for cell in line:
            code = self._codes[cell.kind]
            parts.append(f"\x1b[{code}m{cell.text}\x1b[0m" if code else cell.text)
        return "".join(parts)


@contextmanager
def _screen() -> Iterator[Screen]:
    """A screen without a cursor, which comes back whatever happens."""
    _write(HIDE)
    try:
        yield Screen()
    finally:
        _write(SHOW)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
