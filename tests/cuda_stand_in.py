"""The CUDA runtime as cuda-python gives it, over memory of the host: for tests without a GPU.

Device memory are arrays known by their real address. What goes into a stream is done when somebody
waits for it, as late as a GPU could do it, so that reading a result too early is noticed. Copies
must go from and to whole pieces of memory of the right kind, or the test fails.
"""

from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 256


class Error(IntEnum):
    SUCCESS = 0
    MEMORY = 2
    NO_DEVICE = 100
    CAPTURE = 900


class Kind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Mode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class Attribute(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class CudaStandIn:
    """The functions that exporter/runtime/cuda_runtime.py calls, with cuda-python's results."""

    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = Mode
    cudaDeviceAttr = Attribute

    def __init__(self, sm: int = 89, memory: int = 1 << 30, gpus: int = 1) -> None:
        self.sm, self.memory, self.gpus = sm, memory, gpus
        self.blocks: dict[int, npt.NDArray[np.uint8]] = {}  # on the device, by address
        self.pinned: dict[int, npt.NDArray[np.uint8]] = {}
        self.pending: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.captures = self.launches = self.alive = 0
        self.refuses_capture = False

    def enqueue(self, work: Callable[[], None]) -> None:
        """Into the stream, or into what is being captured."""
        (self.pending if self.captured is None else self.captured).append(work)

    def device(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """`size` bytes of device memory; AssertionError where they are not one piece."""
        return _piece(self.blocks, address, size)

    def cudaSetDevice(self, number: int) -> tuple[Error]:
        return (Error.SUCCESS if number < self.gpus else Error.NO_DEVICE,)

    def cudaDeviceGetAttribute(self, name: Attribute, number: int) -> tuple[Error, int]:
        major = name == Attribute.cudaDevAttrComputeCapabilityMajor
        return Error.SUCCESS, self.sm // 10 if major else self.sm % 10

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.SUCCESS, error.name.lower().encode()

    def cudaGetLastError(self) -> tuple[Error]:
        return (Error.SUCCESS,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, int]:
        return Error.SUCCESS, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[Error]:
        return (Error.SUCCESS,)

    def cudaMemGetInfo(self) -> tuple[Error, int, int]:
        used = sum(block.size for block in self.blocks.values())
        return Error.SUCCESS, self.memory - used, self.memory

    def cudaMalloc(self, size: int) -> tuple[Error, int | None]:
        if size > self.cudaMemGetInfo()[1]:
            return Error.MEMORY, None
        address, block = _aligned(size)
        block[:] = 255  # nothing may count on zeros; as floats these are NaN
        self.blocks[address] = block
        return Error.SUCCESS, address

    def cudaFree(self, address: int) -> tuple[Error]:
        del self.blocks[address]
        return (Error.SUCCESS,)

    def cudaMallocHost(self, size: int) -> tuple[Error, int]:
        address, block = _aligned(size)
        self.pinned[address] = block
        return Error.SUCCESS, address

    def cudaFreeHost(self, address: int) -> tuple[Error]:
        del self.pinned[address]
        return (Error.SUCCESS,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Error]:
        block = self.device(address, size)
        self.enqueue(lambda: block.fill(value))
        return (Error.SUCCESS,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: Kind, stream: int
    ) -> tuple[Error]:
        if kind == Kind.cudaMemcpyHostToDevice:
            target, origin = self.device(to, size), _piece(self.pinned, source, size)
        else:
            target, origin = _piece(self.pinned, to, size), self.device(source, size)
        self.enqueue(lambda: np.copyto(target, origin))
        return (Error.SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        assert self.captured is None, "waited for a stream that is captured"
        while self.pending:
            self.pending.pop(0)()
        return (Error.SUCCESS,)

    def cudaStreamBeginCapture(self, stream: int, mode: Mode) -> tuple[Error]:
        if self.refuses_capture:
            return (Error.CAPTURE,)
        self.captured = []
        return (Error.SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Error, Any]:
        if self.captured is None:
            return Error.CAPTURE, None
        graph, self.captured = SimpleNamespace(works=self.captured), None
        return Error.SUCCESS, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Error, Any]:
        self.captures += 1
        self.alive += 1
        return Error.SUCCESS, graph

    def cudaGraphDestroy(self, graph: Any) -> tuple[Error]:
        return (Error.SUCCESS,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Error]:
        self.alive -= 1
        return (Error.SUCCESS,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Error]:
        self.launches += 1
        for work in graph.works:
            self.enqueue(work)
        return (Error.SUCCESS,)


def _aligned(size: int) -> tuple[int, npt.NDArray[np.uint8]]:
    whole = np.zeros(size + ALIGNMENT, np.uint8)
    address = int(whole.ctypes.data)
    skip = -address % ALIGNMENT
    return address + skip, whole[skip : skip + size]


def _piece(
    blocks: dict[int, npt.NDArray[np.uint8]], address: int, size: int
) -> npt.NDArray[np.uint8]:
    for start, block in blocks.items():
        if start <= address and address + size <= start + block.size:
            return block[address - start : address - start + size]
    raise AssertionError(f"{size} bytes at {address:#x} are no piece of this memory")
