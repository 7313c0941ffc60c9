"""Progress of long stages on stderr: which stage, step i of n, time still needed."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

log = logging.getLogger(__name__)

Step = Callable[[], None]


class Progress:
    """Reports to the log alone; what the library uses when nobody watches."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """A stage of `total` steps: call what is given after each of them."""
        log.info("%s: %d steps", name, total)
        yield lambda: None


class TerminalProgress(Progress):
    """Draws one bar a stage on stderr; plain lines where stderr is not a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """A stage of `total` steps: call what is given after each of them."""
        if not self._console.is_terminal:
            self._console.print(f"{name}: {total} step{'s' * (total != 1)}", highlight=False)
            yield lambda: None
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
