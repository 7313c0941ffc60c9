"""Launchers of CUDA kernels, compiled for this host or for its GPU, and the memory they work on."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ort_ops.build import ROOT
from tests.cubins import SUFFIX
from tests.once import made_once

WRAPPERS = Path(__file__).parent / "ort_ops"
WARNINGS = ("-Wall", "-Wextra", "-Werror")
ON_CPU = ("-std=c++17", "-x", "c++", "-DDQX_ON_CPU", "-ffp-contract=off", *WARNINGS, f"-I{ROOT}")
ON_GPU = ("-std=c++17", "-Xcompiler=-Wall,-Werror,-fPIC", f"-I{ROOT}")

Array = npt.NDArray[Any]


def host_compiler() -> str | None:
    return shutil.which("g++")


def kernel_sources(op: str) -> list[str]:
    """All .cu files of an operator, as `compile_on_cpu` takes them."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / op).glob("*.cu"))


def compile_on_cpu(target: Path, sources: Sequence[str], *flags: str) -> Path:
    """Compile files of `tests/ort_ops` and of `ort_ops` for the host; a warning is an error."""
    compiler = host_compiler()
    assert compiler is not None
    objects = _objects([compiler, *ON_CPU, *flags], target, sources)
    subprocess.run([compiler, *flags, *objects, "-o", target], check=True)
    return target


def compile_on_gpu(target: Path, sources: Sequence[str], sm: int, *flags: str) -> Path:
    """The same sources for GPUs of `sm`, with all that these alone have: wgmma is not in sm_90."""
    command = ["nvcc", f"-arch=sm_{sm}{SUFFIX.get(sm, '')}", *flags]
    objects = _objects([*command, *ON_GPU, "-x", "cu"], target, sources)
    subprocess.run([*command, *objects, "-o", target], check=True)
    return target


def sm_at_hand() -> int:
    """This machine's GPU: its compute capability × 10."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@dataclass(frozen=True)
class Launched:
    """A launcher behind C functions, `library`, and where its memory is."""

    library: ctypes.CDLL
    gpu: bool

    @classmethod
    def compiled(
        cls, factory: pytest.TempPathFactory, sources: Sequence[str], gpu: bool = False
    ) -> "Launched":
        """Of the same `sources` as `compile_on_cpu`, once for all tests of a run."""

        def make(folder: Path) -> None:
            made = folder / "launched.so"
            if gpu:
                compile_on_gpu(made, sources, sm_at_hand(), "-shared")
            else:
                compile_on_cpu(made, sources, "-O2", "-fPIC", "-shared")

        which = hashlib.sha256(" ".join(sources).encode()).hexdigest()[:16]
        folder = made_once(factory, f"launched-{'gpu' if gpu else 'cpu'}-{which}", make)
        return cls(ctypes.CDLL(str(folder / "launched.so")), gpu)

    def put(self, array: Array, offset: int = 0) -> "Buffer":
        """A copy of an array, `offset` bytes behind an aligned address."""
        return Buffer(array, offset, self.gpu)

    def poisoned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> "Buffer":
        """Memory whose every byte is 255, not a number, before a launcher writes it."""
        empty = np.empty(shape, dtype)
        return self.put(np.full(empty.nbytes, 255, np.uint8).view(empty.dtype).reshape(shape))


class Buffer:
    """Memory of a device that holds one array."""

    def __init__(self, array: Array, offset: int, gpu: bool) -> None:
        import torch

        self._shape, self._dtype, self._offset = array.shape, array.dtype, offset
        self._bytes = torch.zeros(offset + array.nbytes + 1, dtype=torch.uint8)
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._bytes.numpy()[offset : offset + array.nbytes] = values
        if gpu:
            self._bytes = self._bytes.cuda()

    @property
    def pointer(self) -> int:
        return self._bytes.data_ptr() + self._offset

    def array(self) -> Array:
        """What the memory holds now; waits for the GPU."""
        count = int(np.prod(self._shape)) * self._dtype.itemsize
        held = self._bytes.cpu().numpy()[self._offset : self._offset + count]
        return held.copy().view(self._dtype).reshape(self._shape)


def _objects(command: Sequence[str], target: Path, sources: Sequence[str]) -> list[str]:
    """What a compiler makes of each source, beside `target`."""

    def compiled(source: str) -> str:
        made = f"{target}-{source.replace('/', '-')}.o"
        path = (WRAPPERS if source.endswith(".cc") else ROOT) / source
        subprocess.run([*command, "-c", str(path), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, sources))
