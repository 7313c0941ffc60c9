"""A terminal as `--watch` needs it: in memory, from what a program wrote; and one to run it in."""

import os
import re
import select
import signal
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TOKEN = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|(.)", re.S)


class Terminal:
    """Lines of text as they stand after `write`; raises ValueError for what it does not know."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""] * rows
        self.row = self.column = 0
        self.scrolled = 0  # lines that left at the top
        self.cursor = True

    def write(self, text: str) -> None:
        for number, command, character in TOKEN.findall(text):
            if character:
                self._put(character)
            else:
                self._do(number, command)

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.column, self.row = 0, self.row + 1
            if self.row == self.rows:
                self.lines = [*self.lines[1:], ""]
                self.row -= 1
                self.scrolled += 1
        elif self.column >= self.columns:
            raise ValueError(f"a line of more than {self.columns} columns: {self.lines[self.row]}")
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def _do(self, number: str, command: str) -> None:
        if command == "A":
            self.row = max(0, self.row - int(number))
        elif command == "K":
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif command == "J":
            first = self.row if not number else 0
            self.lines[first:] = [""] * (self.rows - first)
        elif command == "H":
            self.row = self.column = 0
        elif command in "hl":
            self.cursor = command == "h"
        elif command != "m":
            raise ValueError(f"unknown command {number}{command}")


class Program:
    """A program on a terminal of its own, which reads what is typed and shows what it writes."""

    def __init__(self, argv: Sequence[str | Path], columns: int = 80, rows: int = 24) -> None:
        import fcntl
        import pty
        import termios

        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        environment = {**kept, "OMP_NUM_THREADS": "1", "TERM": "xterm", "INPUTRC": os.devnull}

        def settle() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored below a shell in the background
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            list(map(str, argv)), stdin=other, stdout=other, stderr=other, env=environment,
            start_new_session=True, preexec_fn=settle,
        )  # fmt: skip
        os.close(other)
        self.shown = ""

    def type(self, text: str) -> None:
        """Press keys; `\\x03` is Ctrl-C, `\\x04` Ctrl-D."""
        os.write(self._own, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What was shown since the last time, up to `text`."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            if not self._read(end - time.monotonic()):
                raise AssertionError(f"{text!r} was not shown, but {self.shown!r}")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def finish(self, seconds: float = 60) -> tuple[int, str]:
        """The exit code, and what was shown since the last time."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        code = self.process.wait(max(0.1, end - time.monotonic()))
        os.close(self._own)
        return code, self.shown

    def _read(self, seconds: float) -> bool:
        """Take what has come; False where nothing does any more."""
        if not select.select([self._own], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._own, 65536)
        except OSError:  # Linux: the program has gone
            return False
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
