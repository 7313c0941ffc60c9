"""Progress of long stages on stderr: which stage, step i of n, time still needed."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

log = logging.getLogger(__name__)

Step = Callable[[], None]
QUIET = 10.0  # seconds between two lines of a stage, where no bar can be drawn


class Progress:
    """Reports to the log alone; what the library uses when nobody watches."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """A stage of `total` steps: call what is given after each of them."""
        start = time.monotonic()
        yield lambda: None
        log.info("%s: %d steps in %.1f s", name, total, time.monotonic() - start)


class TerminalProgress(Progress):
    """Draws one bar a stage on stderr; plain lines where stderr is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """A stage of `total` steps: call what is given after each of them."""
        with super().stage(name, total):
            if not self._console.is_terminal:
                yield _Lines(name, total).step
                return
            columns = (
                TextColumn("{task.description:>12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            with Bars(*columns, console=self._console) as bars:
                task = bars.add_task(name, total=total)
                yield lambda: bars.advance(task)


class _Lines:
    """One stage in plain lines: its name at once, then how far it is every few seconds."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._start = self._last = time.monotonic()
        print(f"{name}: {total} step{'s' * (total != 1)}", file=sys.stderr, flush=True)

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._last < QUIET or self._done >= self._total:
            return
        self._last = now
        left = timedelta(seconds=round((now - self._start) * (self._total / self._done - 1)))
        line = f"{self._name}: {self._done}/{self._total}, {left} left"
        print(line, file=sys.stderr, flush=True)
