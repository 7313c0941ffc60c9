"""Finds the library of a bundle's operators, or builds it; without one, standard operators run."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = "plugins"  # of the bundle; below it the library and the sources
BUILT = "built"  # below that: libraries that were built on this machine
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…


def find_library(bundle: Path, provider: str = "CPUExecutionProvider") -> Path | None:
    """The library for this kind of machine, or for its GPU where the CUDA provider computes.

    Built from the bundle's sources where it is missing; None where that is not possible: the graphs
    bring a body of standard operators for every node. What happens is said on stderr.
    """
    if provider == "CUDAExecutionProvider":
        sm = compute_capability()
        if sm is None:
            return None
        name = f"libdqx-cuda-{platform.machine()}-sm{sm}.so"
        return _found(bundle, name, "build_cuda.py", ["--sm", str(sm), "--into"], "some minutes")
    name = f"libdqx-{platform.machine()}.so"
    return _found(bundle, name, "build.py", [], "about a quarter of a minute")


def compute_capability() -> int | None:
    """That of the first GPU, by ten (87 is Orin), as its driver says it; None: no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    for value, attribute in ((major, MAJOR), (minor, MINOR)):
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return None if failed else 10 * major.value + minor.value


def _found(bundle: Path, name: str, program: str, options: Sequence[str], time: str) -> Path | None:
    folder = bundle / FOLDER
    for place in (folder / BUILT / name, folder / name):
        if place.is_file():
            return place
    source = folder / "ort_ops" / program
    if not source.is_file():
        return None
    of = name.removeprefix("libdqx-").removesuffix(".so")
    _say(f"building the operators for {of}, once, {time}")
    command = [sys.executable, "-B", str(source), *options, str(folder / BUILT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return folder / BUILT / name
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
    _say(f"the operators could not be built ({reason}); standard operators run, slower")
    return None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
