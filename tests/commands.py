"""The real commands: in this process, which is fast, or in one of their own where that matters."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.cli import main

GOLDEN = Path(__file__).parent / "golden"
DQEXPORT = str(Path(sys.executable).with_name("dqexport"))
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
# a build of a golden checkpoint in about a second; its weights are random, so 4 bits cannot pass
QUICK = ("--gen-length", "16", "--block-length", "16", "--gate-prompts", "2", "--calib-prompts",
         "4", "--samples", "16")  # fmt: skip
QUICK_W4 = (str(GOLDEN / "llada"), "--recipe", "w4a16", "--no-gate", *QUICK)
QUICK_FP32 = (str(GOLDEN / "llada"), "--recipe", "fp32", *QUICK)


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


def dqexport(*argv: str | Path) -> Outcome:
    """`dqexport ARGV` in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["dqexport", *map(str, argv)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def build(*argv: str | Path) -> Outcome:
    """`dqexport build ARGV`, which must succeed."""
    outcome = dqexport("build", *argv)
    assert outcome.code == 0, outcome.err
    return outcome


def assert_refused(outcome: Outcome, says: str, hint: str) -> None:
    """Exit code 1, nothing on stdout, `error:`, an empty line, `hint:`, and no traceback."""
    assert outcome.code == 1, outcome
    assert not outcome.out
    *before, error, empty, mend = outcome.err.splitlines()
    assert error.startswith("error: ") and says in error, outcome.err
    assert not empty
    assert mend.startswith("hint: ") and hint in mend, outcome.err
    assert not any("Traceback" in line for line in before)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def changed(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written, in nanoseconds."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_mtime_ns for file in files}


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own in `folder`; the test is skipped where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
