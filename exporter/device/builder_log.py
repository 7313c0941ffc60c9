"""What TensorRT says while it builds: its errors are kept, and how far it is goes to stderr."""

from __future__ import annotations

import shutil
import sys
import threading
from typing import Any

CLEAR = "\r\x1b[K"  # to the begin of the line, and all behind it away


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def error_log(trt: Any) -> Any:
    """A logger that keeps errors in `errors`: a host without a GPU has some that do no harm."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


class Phases:
    """Phases of a build of `name`: on a terminal one line that changes, elsewhere outer phases.

    TensorRT calls it from several threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._steps: dict[str, tuple[int, int]] = {}  # done and all, of phases that go on
        self._terminal = sys.stderr.isatty()

    def start(self, phase: str, outer: str | None, steps: int) -> None:
        """A phase of `steps` steps begins, within another or None."""
        with self._lock:
            self._steps[phase] = 0, steps
            if not self._terminal and outer is None:
                say(f"{self._name}: {phase}")
            self._draw()

    def step(self, phase: str, step: int) -> None:
        """A step of a phase is done; they count from 0."""
        with self._lock:
            self._steps[phase] = step + 1, self._steps.get(phase, (0, 0))[1]
            self._draw()

    def finish(self, phase: str) -> None:
        """A phase ends, whether all its steps were taken or not."""
        with self._lock:
            self._steps.pop(phase, None)
            self._draw()

    def _draw(self) -> None:
        if not self._terminal:
            return
        parts = [f"{phase} {done}/{all_}" for phase, (done, all_) in self._steps.items()]
        line = f"{self._name}: {', '.join(parts)}"[: shutil.get_terminal_size().columns - 1]
        print(CLEAR + (line if parts else ""), end="", file=sys.stderr, flush=True)


def monitor(trt: Any, phases: Phases) -> Any:
    """`phases` as what a builder reports to."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
