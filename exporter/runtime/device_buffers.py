"""Memory on the device, and tensors that travel between it and pinned memory of the host."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .cuda_runtime import Cuda
from .session import Array


class DeviceMemory:
    """`size` bytes on the device at `address`, given back with this object."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = size
        self.address = cuda.allocate(size)
        weakref.finalize(self, cuda.free, self.address)


class StagedTensor:
    """A tensor on the device with its double in pinned host memory, as long as it can become.

    Addresses stay, so that copies can be part of a recorded graph; smaller shapes take the front.
    """

    def __init__(self, cuda: Cuda, largest: Sequence[int], dtype: npt.DTypeLike) -> None:
        self._cuda, self.dtype = cuda, np.dtype(dtype)
        size = math.prod(largest) * self.dtype.itemsize
        self._device = DeviceMemory(cuda, size)
        self._pinned = cuda.allocate_pinned(size)
        weakref.finalize(self, cuda.free_pinned, self._pinned)
        self._bytes = np.ctypeslib.as_array(
            (ctypes.c_uint8 * max(size, 1)).from_address(self._pinned)
        )

    @property
    def address(self) -> int:
        """Of the device's copy."""
        return self._device.address

    def host(self, shape: Sequence[int]) -> Array:
        """The host's copy as an array of `shape`; no copy of its own."""
        return self._bytes[: self._size(shape)].view(self.dtype).reshape(shape)

    def upload(self, shape: Sequence[int]) -> None:
        """Copy what a tensor of `shape` takes to the device, in the stream."""
        self._cuda.upload(self.address, self._pinned, self._size(shape))

    def download(self, shape: Sequence[int]) -> None:
        """Copy it to the host, in the stream."""
        self._cuda.download(self._pinned, self.address, self._size(shape))

    def _size(self, shape: Sequence[int]) -> int:
        return math.prod(shape) * self.dtype.itemsize
