"""Our launchers for GPUs as one shared library, and their structures for ctypes."""

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from ort_ops.attention.launch import Call as AttentionCall
from ort_ops.build import ROOT
from ort_ops.cached_attention.launch import Call as CachedCall
from ort_ops.cached_attention.launch import Operands as CachedOperands
from ort_ops.cached_attention.launch import Results as CachedResults
from ort_ops.linear_w4a8.launch import Call as LinearCall

OPERATORS = ("linear_w4a8", "attention", "cached_attention", "kv_update")
__all__ = [
    "OPERATORS", "AttentionCall", "CachedCall", "CachedOperands", "CachedResults", "checked",
    "compile_library", "loaded", "stream",
]  # fmt: skip


def compile_library(sm: str, place: Path) -> None:
    """For GPUs of one compute capability × 10, such as 87 or 90a."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    sources = [ROOT / "cuda_library" / "c_functions.cc"]
    for operator in OPERATORS:
        sources += sorted((ROOT / operator).glob("*.cu"))
    options = ["-std=c++17", "-O3", f"-arch=sm_{sm}", "-Xcompiler=-fPIC", f"-I{ROOT}"]

    with TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def compile_one(source: Path) -> Path:
            made = Path(folder) / f"{source.parent.name}-{source.stem}.o"
            subprocess.run([nvcc, *options, "-c", str(source), "-o", str(made)], check=True)
            return made

        objects = list(pool.map(compile_one, sources))
        subprocess.run([nvcc, "-shared", *map(str, objects), "-o", str(place)], check=True)


def loaded(place: Path) -> ctypes.CDLL:
    """The library, its structures held against ours."""
    library = ctypes.CDLL(str(place.resolve()))
    for name in ("linear_workspace", "attention_workspace", "cached_attention_workspace"):
        getattr(library, name).restype = ctypes.c_size_t
    structures = {
        "linear": LinearCall, "attention": AttentionCall, "cached_attention": CachedCall,
    }  # fmt: skip
    for name, structure in structures.items():
        size_of = getattr(library, f"size_of_{name}")
        size_of.restype = ctypes.c_size_t
        assert size_of() == ctypes.sizeof(structure), name
    return library


def checked(error: int) -> None:
    """RuntimeError where a launcher has refused."""
    if error:
        raise RuntimeError(f"error {error} of the CUDA runtime")


def stream() -> ctypes.c_void_p:
    """The stream that torch works on, also while it captures a graph; none on a host."""
    import torch

    if not torch.cuda.is_available():
        return ctypes.c_void_p(None)
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
