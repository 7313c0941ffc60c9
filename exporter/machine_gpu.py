"""Raw facts on NVIDIA's software: the CUDA toolkit, TensorRT. Nothing is judged here."""

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporter.machine import load_library, output_of, read_text
from trt_plugins.build import find_headers, find_nvcc

LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8")  # TensorRT's, newest first
VERSION_PARTS = ("MAJOR", "MINOR", "PATCH")


@dataclass(frozen=True)
class Installed:
    """Something that was found: its version, if it tells, and its place."""

    version: str | None
    place: str


def cuda_toolkit() -> Installed | None:
    """nvcc where the plugin library would take it from."""
    nvcc = _found(find_nvcc)
    if nvcc is None:
        return None
    return Installed(parse_nvcc(output_of([str(nvcc), "--version"])), str(nvcc))


def tensorrt_library() -> Installed | None:
    """The TensorRT library that the loader finds, and what it says of itself."""
    for name in LIBRARIES:
        library = load_library(name)
        if library is not None:
            number = getattr(library, "getInferLibVersion", None)
            if number is not None:
                number.restype = ctypes.c_int
            return Installed(library_version(number()) if number else None, name)
    return None


def tensorrt_headers() -> Installed | None:
    """TensorRT's headers where the plugin library would take them from."""
    folder = _found(find_headers)
    if folder is None:
        return None
    return Installed(parse_headers(read_text(folder / "NvInferVersion.h")), str(folder))


def debian_version(package: str) -> str | None:
    """Version of an installed Debian package."""
    return output_of(["dpkg-query", "-W", "-f", "${Version}", package]).strip() or None


def parse_nvcc(text: str) -> str | None:
    """`13.0` of `Cuda compilation tools, release 13.0, V13.0.88`."""
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else None


def parse_headers(text: str) -> str | None:
    """The version in NvInferVersion.h, `10.14.1`; since 10.13 its names refer to others."""
    defined = dict(re.findall(r"^#define (\w+) (\w+)", text, re.MULTILINE))
    parts = [defined.get(f"NV_TENSORRT_{part}", "") for part in VERSION_PARTS]
    numbers = [defined.get(part, part) for part in parts]
    return ".".join(numbers) if all(number.isdecimal() for number in numbers) else None


def library_version(number: int) -> str:
    """What getInferLibVersion returns, as a version: 101602 is 10.16.2, 8602 is 8.6.2."""
    unit = 10_000 if number >= 10_000 else 1000  # two digits for the minor version since 10
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def _found(search: Callable[[], Path | None]) -> Path | None:
    """What a search of the plugin library finds; nothing where the search itself fails."""
    try:
        return search()
    except (ImportError, ValueError, OSError):  # ValueError: blocked in sys.modules
        return None
