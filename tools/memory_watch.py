"""Runs a command and watches its memory through /proc (Linux), stage by stage."""

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO

PERIOD = 0.05  # seconds between samples; a shorter stage may pass unseen


@dataclass
class Peak:
    """Most bytes seen so far."""

    resident: int = 0
    anonymous: int = 0

    def see(self, resident: int, anonymous: int) -> None:
        self.resident = max(self.resident, resident)
        self.anonymous = max(self.anonymous, anonymous)


@dataclass
class Watched:
    """A process that is sampled; the lines it prints on stderr tell the stage it is in."""

    stage: str = "start"
    stages: dict[str, Peak] = field(default_factory=dict)
    high_water: int = 0  # bytes, the kernel's own record of the peak of the main process
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def peak(self) -> Peak:
        """Over all stages."""
        worst = Peak()
        for one in self.stages.values():
            worst.see(one.resident, one.anonymous)
        return worst

    @property
    def worst_stage(self) -> str:
        return max(self.stages, key=lambda name: self.stages[name].resident)

    def follow(self, stream: IO[str]) -> None:
        """Take stages from lines such as `quantize: 4 steps` until the stream ends."""
        for line in stream:
            self.lines.append(line)
            if found := re.match(r"(.+): \d+ steps?$", line):
                self.stage = found[1]


def watch(command: Sequence[str]) -> Watched:
    """Run a command, sampling it and its children. RuntimeError with its stderr when it fails."""
    watched, start = Watched(), time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        reader = Thread(target=watched.follow, args=(process.stderr,))
        reader.start()
        while process.poll() is None:
            sample(process.pid, watched)
            time.sleep(PERIOD)
        reader.join()
    watched.seconds = time.monotonic() - start
    if process.returncode:
        raise RuntimeError(f"the build failed:\n{''.join(watched.lines)}")
    return watched


def sample(pid: int, watched: Watched) -> None:
    """One look at a process and its children."""
    own = memory(pid)
    together = [own, *(memory(child) for child in children(pid))]
    watched.high_water = max(watched.high_water, own["VmHWM"])
    totals = [sum(one[key] for one in together) for key in ("VmRSS", "RssAnon")]
    watched.stages.setdefault(watched.stage, Peak()).see(totals[0], totals[1])


def memory(pid: int) -> dict[str, int]:
    """VmRSS, VmHWM and RssAnon of a process in bytes; zeros once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        status = ""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return {key: 1024 * int(found.get(key, 0)) for key in ("VmRSS", "VmHWM", "RssAnon")}


def children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended, or the kernel does not list children
        return []
