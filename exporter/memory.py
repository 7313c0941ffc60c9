"""Keeps the resident memory of a long build at what it holds."""

import ctypes
import sys

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # parameters of mallopt(3) in glibc
LARGE = 1 << 20  # bytes


def return_large_blocks() -> None:
    """Make glibc give freed blocks of a megabyte and more back to the system at once.

    By default its threshold grows with use up to 32 MB, and the heap of a process that allocates
    many tensors of different sizes fragments to several times of what it holds. Does nothing on
    other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_ARENA_MAX, 2)
