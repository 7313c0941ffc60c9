"""The GPU at hand, asked of its driver: whatever installs a GPU brings libcuda."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from .build_error import EngineError

LIBRARY = "libcuda.so.1"
MAJOR, MINOR, INTEGRATED = 75, 76, 18  # CUdevice_attribute in cuda.h
NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """What an engine is built for where it is built on the device."""

    name: str
    sm: int  # compute capability, times ten
    shares_memory: bool  # with the CPU, as on Jetson


def this_gpu() -> Gpu:
    """The first GPU that CUDA shows. Raises EngineError where it shows none."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        raise EngineError(f"no GPU here: {LIBRARY}, NVIDIA's driver, is not installed") from None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES)
    _check(cuda.cuInit(0), "cuInit")
    _check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _check(cuda.cuDeviceGetName(name, NAME_BYTES, device), "cuDeviceGetName")
    major, minor, integrated = (_attribute(cuda, device, n) for n in (MAJOR, MINOR, INTEGRATED))
    return Gpu(name.value.decode(errors="replace"), 10 * major + minor, bool(integrated))


def _attribute(cuda: ctypes.CDLL, device: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int()
    _check(cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device), "cuDeviceGetAttribute")
    return value.value


def _check(code: int, call: str) -> None:
    if code:
        raise EngineError(f"no GPU that CUDA can use: {call} returned {code}")


def available_mib() -> int | None:
    """Memory that programs can still have, in MiB; None: the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) // 1024 if found else None
