"""Finds the library of a bundle's operators, or builds it; without one, standard operators run."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

FOLDER = "plugins"  # of the bundle; below it the library and the sources
BUILT = "built"  # below that: libraries that were built on this machine


def find_library(bundle: Path) -> Path | None:
    """The library for this kind of machine; built from the bundle's sources where it is missing.

    None where that is not possible: the graphs bring a body of standard operators for every node.
    What happens is said on stderr.
    """
    folder = bundle / FOLDER
    name = f"libdqx-{platform.machine()}.so"
    for place in (folder / BUILT / name, folder / name):
        if place.is_file():
            return place
    return _build(folder, name)


def _build(folder: Path, name: str) -> Path | None:
    program = folder / "ort_ops" / "build.py"
    if not program.is_file():
        return None
    _say(f"building the operators for {platform.machine()}, once, about a quarter of a minute")
    command = [sys.executable, "-B", str(program), str(folder / BUILT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return folder / BUILT / name
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
    _say(f"the operators could not be built ({reason}); standard operators run, slower")
    return None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
