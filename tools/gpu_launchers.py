"""The launchers of the library for GPUs, and their structures for ctypes."""

import ctypes
from pathlib import Path

from ort_ops.attention.launch import Call as AttentionCall
from ort_ops.cached_attention.launch import Call as CachedCall
from ort_ops.cached_attention.launch import Operands as CachedOperands
from ort_ops.cached_attention.launch import Results as CachedResults
from ort_ops.linear_w4a8.launch import Call as LinearCall

__all__ = [
    "AttentionCall", "CachedCall", "CachedOperands", "CachedResults", "checked", "loaded", "stream",
]  # fmt: skip


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
