"""Runs a program that nobody has read, with its tests, in a process that is shut in.

What holds everywhere: no environment, an empty folder that is removed, nothing on stdin, output
thrown away, limits on time, memory and file size, and a hook that refuses processes, sockets and
files outside of the folder. A user other than root also has a limit on processes. The process of
the program has ended when the verdict is there; on Linux it has no capabilities.

Where the kernel grants namespaces and mounts (Linux 5.12 or later) more holds, past the hook and
for root too: no file outside of the folder can be changed and no device opened, no network and no
other process can be seen or reached, and the program cannot undo any of it. All that it started has
ended when the verdict is there, and is killed if the caller is killed.

What does not hold: all that the user may read can be read. The hook stops programs that do harm by
accident or in the plain way, not one that is written to get by. Past it, a Unix socket in the file
system can be reached, and without namespaces all that the user may do without capabilities can be
done. A program that looks for the channel of the verdict can forge it.
"""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from exporter.errors import UserError

SECONDS = 10.0  # of one program with its tests
START_SECONDS = 60.0  # until the process has shut itself in; a busy machine is no wrong answer
END_SECONDS = 10.0  # until what is killed has ended; the kernel needs milliseconds
JAIL = Path(__file__).with_name("jail.py")
READY = b"ready"


def run_tests(program: str, tests: str, seconds: float = SECONDS) -> bool:
    """Whether `program`, then `tests` in the same module, run to their end within `seconds`.

    The tests see `__name__ == "__main__"`, the program does not. An end before the end, as by
    `sys.exit(0)`, does not count: only what runs after the last test sends the secret word by which
    success is known. Raises UserError when no program can be run here.
    """
    word = secrets.token_bytes(16)
    orders = json.dumps({"program": program, "tests": tests, "seconds": seconds}).encode()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as channel,
    ):
        channel.write(word + orders)
        channel.seek(len(word))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(JAIL), str(len(word)), str(os.getpid())],
            stdin=channel,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        assert process.stdout is not None and process.stderr is not None
        with process.stdout as verdict, process.stderr as complaint:
            started = _listen(verdict, len(READY), START_SECONDS) == READY
            said = _listen(verdict, len(word), seconds) if started else b""
            seen = _end(process, complaint).decode(errors="replace").strip()
            if not started:
                raise UserError(
                    f"The sandbox does not start: {seen or f'exit code {process.returncode}'}",
                    "Programs can be run on Linux, with some free memory and processes",
                )
    return said == word


def _listen(channel: IO[bytes], count: int, seconds: float) -> bytes:
    """`count` bytes, or what has come of them when the channel closes or the time is over."""
    said, deadline = b"", time.monotonic() + seconds
    while len(said) < count and (left := deadline - time.monotonic()) > 0:
        if select.select([channel], [], [], left)[0]:
            part = os.read(channel.fileno(), count - len(said))
            if not part:
                break
            said += part
    return said


def _end(process: subprocess.Popen[bytes], complaint: IO[bytes]) -> bytes:
    """End all that was started, and return up to 2000 bytes of what the jail complained of.

    With namespaces the process is not the program: told to end, it ends the program with all that
    belongs to it, and is the last to hold the channel of complaints. A program without namespaces
    does not hold it.
    """
    process.terminate()
    seen = _listen(complaint, 2000, END_SECONDS)
    with suppress(ProcessLookupError):  # it has ended, and left nobody behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return seen
