"""Plugins of TensorRT on the host: compiled with sanitizers, run by tests/trt_plugins/harness.cc.

Needs g++ and TensorRT's headers (pip's kernel-lens has some), neither TensorRT nor a GPU.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trt_plugins.build import ROOT, build_library, find_headers, library_name, source_files

Array = npt.NDArray[Any]

PROGRAM = "harness"
FLAGS = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Werror")
KINDS = {
    np.dtype(np.float32): "fp32", np.dtype(np.float16): "fp16", np.dtype(np.int8): "int8",
    np.dtype(np.uint16): "bf16",  # as bits
    np.dtype(np.int32): "int32", np.dtype(np.int64): "int64", np.dtype(np.bool_): "bool",
}  # fmt: skip
MISSING = (
    "no g++" if not shutil.which("g++")
    else "no headers of TensorRT: pip install kernel-lens" if not find_headers()
    else None
)  # fmt: skip
needs_plugins = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@dataclass(frozen=True)
class Given:
    """A tensor of a case. The first `variable` axes are not known before the engine runs."""

    content: Array
    variable: int = 0
    kind: str | None = None  # int4, where `content` is packed; else that of the array
    shape: tuple[int, ...] | None = None  # of what is packed

    def line(self, file: Path) -> str:
        """The harness's text for it, and its file."""
        file.write_bytes(np.ascontiguousarray(self.content).tobytes())
        shape = self.content.shape if self.shape is None else self.shape
        sizes = [f"{'~' * (axis < self.variable)}{size}" for axis, size in enumerate(shape)]
        return " ".join([self.kind or KINDS[self.content.dtype], str(file), *sizes])


@dataclass(frozen=True)
class PluginCase:
    """A node: its attributes, its inputs, and what its outputs are: y first."""

    plugin: str
    inputs: Sequence[Given]
    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    attributes: Mapping[str, int | float] = field(default_factory=dict)
    in_place: Sequence[int] = ()  # of each output the input whose memory it has, -1: its own
    others: Sequence[tuple[tuple[int, ...], npt.DTypeLike]] = ()  # outputs behind y
    long: bool = False  # integer attributes come in 64 bits


@dataclass(frozen=True)
class Outcome:
    """What became of a case: y and other outputs, or what refused it; and what was logged."""

    y: Array | None
    refused: str | None
    log: tuple[str, ...]
    others: tuple[Array, ...] = ()


@dataclass(frozen=True)
class Harness:
    """The program and the library that `compile_plugins` leaves in a folder."""

    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / PROGRAM

    @property
    def library(self) -> Path:
        return self.folder / library_name(None)

    def operators(self) -> dict[str, list[str]]:
        """Names of the operators in the library, and of the attributes of each."""
        command = [self.program, self.library]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = [line.split() for line in done.stdout.splitlines()]
        return {name: attributes for name, *attributes in lines}

    def run(self, cases: Sequence[PluginCase], folder: Path) -> list[Outcome]:
        """The outcome of each case; their files go to `folder`."""
        text = folder / "cases.txt"
        places = [folder / str(number) for number in range(len(cases))]
        text.write_text("".join(map(_text, cases, places)))
        command = [self.program, self.library, text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outcomes, log = list[Outcome](), list[str]()
        for line in done.stdout.splitlines():
            kind, _, said = line.partition(": ")
            if kind == "log":
                log.append(said)
                continue
            case = cases[len(outcomes)]
            place = places[len(outcomes)]
            found = [] if said else _read(place, case)
            y = found[0] if found else None
            outcomes.append(Outcome(y, said or None, tuple(log), tuple(found[1:])))
            log.clear()
        assert len(outcomes) == len(cases)
        return outcomes


def compile_plugins(folder: Path) -> None:
    """Compile the harness and the library for the host with AddressSanitizer and UBSan.

    The library is made of a copy of what `source_files` lists, as in a bundle.
    """
    copy = folder / "plugins"
    for name in source_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    build_library(folder, None, copy, FLAGS)
    program = folder / PROGRAM
    stand_in = ROOT / "trt_plugins" / "host"
    source = Path(__file__).parent / "trt_plugins" / "harness.cc"
    includes = ["-isystem", str(find_headers()), "-isystem", str(stand_in)]
    warnings = ["-std=c++17", "-Wall", "-Wextra"]
    command = ["g++", *warnings, *FLAGS, *includes, str(source), "-ldl", "-o", str(program)]
    subprocess.run(command, check=True)


def shown(library: Path) -> set[str]:
    """Names that the dynamic linker sees in a library."""
    command = ["nm", "--dynamic", "--defined-only", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


def _text(case: PluginCase, place: Path) -> str:
    place.mkdir()
    lines = [f"plugin {case.plugin}"]
    for name, value in case.attributes.items():
        kind = "number" if isinstance(value, float) else "long" if case.long else "integer"
        lines.append(f"{kind} {name} {value!r}")
    lines += [f"input {t.line(place / str(number))}" for number, t in enumerate(case.inputs)]
    for number, (shape, dtype) in enumerate(_outputs(case)):
        kind, file = KINDS[np.dtype(dtype)], place / f"y{number}"
        lines.append(" ".join(map(str, ["output", kind, file, *shape])))
    lines += [" ".join(map(str, ["in_place", *case.in_place]))] * bool(case.in_place)
    return "\n".join([*lines, "end", ""])


def _outputs(case: PluginCase) -> list[tuple[tuple[int, ...], npt.DTypeLike]]:
    return [(case.shape, case.dtype), *case.others]


def _read(place: Path, case: PluginCase) -> list[Array]:
    return [
        np.frombuffer((place / f"y{number}").read_bytes(), dtype).reshape(shape)
        for number, (shape, dtype) in enumerate(_outputs(case))
    ]
