"""The CUDA runtime by way of cuda-python: memory, copies, one stream, captured graphs."""

from __future__ import annotations

import importlib
import weakref
from typing import Any

from .errors import UserError

MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # of cuda-python 12.6 and later; before
NON_BLOCKING = 1  # cudaStreamNonBlocking: the stream does not wait for the default one


class CudaError(RuntimeError):
    """A call of the CUDA runtime that failed."""


class Cuda:
    """The GPU at hand and a stream on it; sizes in bytes, addresses as integers."""

    def __init__(self, api: Any) -> None:
        """`api`: the module of cuda-python. Raises UserError where there is no GPU to use."""
        self._api = api
        try:
            self._call("cudaSetDevice", 0)
            self.stream = self._call("cudaStreamCreateWithFlags", NON_BLOCKING)
        except CudaError as error:
            raise UserError(
                f"there is no NVIDIA GPU to use: {error}", hint="check the driver: nvidia-smi"
            ) from error
        weakref.finalize(self, api.cudaStreamDestroy, self.stream)

    def capability(self) -> int:
        """Compute capability × 10 of the GPU: 87 is Orin."""
        names = self._api.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", attribute, 0)
            for attribute in (
                names.cudaDevAttrComputeCapabilityMajor,
                names.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return int(major) * 10 + int(minor)

    def allocate(self, size: int) -> int:
        """Address of device memory, aligned to 256. Raises UserError when there is too little."""
        try:
            return int(self._call("cudaMalloc", max(size, 1)))
        except CudaError as error:
            free, whole = self._call("cudaMemGetInfo")
            raise UserError(
                f"{size / 2**20:.0f} MiB of GPU memory cannot be had ({error}): {free / 2**20:.0f}"
                f" of {whole / 2**20:.0f} MiB are free",
                hint="end what else uses the GPU, decode fewer prompts at once, or build the bundle"
                " with a shorter --max-canvas",
            ) from error

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._api.cudaFree(address)  # at the end of a process CUDA may be gone: no check

    def allocate_pinned(self, size: int) -> int:
        """Address of host memory that copies from and to the device need not wait for."""
        return int(self._call("cudaMallocHost", max(size, 1)))

    def free_pinned(self, address: int) -> None:
        """Give pinned host memory back."""
        self._api.cudaFreeHost(address)

    def clear(self, address: int, size: int) -> None:
        """Set device memory to zeros, in the stream."""
        self._call("cudaMemsetAsync", address, 0, size, self.stream)

    def upload(self, device: int, host: int, size: int) -> None:
        """Copy from the host, in the stream."""
        self._copy(device, host, size, "cudaMemcpyHostToDevice")

    def download(self, host: int, device: int, size: int) -> None:
        """Copy to the host, in the stream."""
        self._copy(host, device, size, "cudaMemcpyDeviceToHost")

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        kinds = self._api.cudaMemcpyKind
        self._call("cudaMemcpyAsync", to, source, size, getattr(kinds, kind), self.stream)

    def wait(self) -> None:
        """Until all that is in the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """What goes into the stream from now on is recorded and not done."""
        modes = self._api.cudaStreamCaptureMode
        self._call("cudaStreamBeginCapture", self.stream, modes.cudaStreamCaptureModeThreadLocal)

    def end_capture(self) -> Any:
        """What was recorded, ready to be launched."""
        graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._api.cudaGraphDestroy(graph)

    def abandon_capture(self) -> None:
        """Forget what was recorded; the stream does things again."""
        error, graph = self._api.cudaStreamEndCapture(self.stream)
        if not int(error):
            self._api.cudaGraphDestroy(graph)
        self._api.cudaGetLastError()  # a failed capture leaves its error behind

    def launch(self, recorded: Any) -> None:
        """Do what was recorded, in the stream."""
        self._call("cudaGraphLaunch", recorded, self.stream)

    def drop(self, recorded: Any) -> None:
        """Give a recording back."""
        self._api.cudaGraphExecDestroy(recorded)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Results of a function of the runtime, whose first is the error."""
        error, *results = getattr(self._api, name)(*arguments)
        if int(error):
            _, text = self._api.cudaGetErrorString(error)
            said = text.decode() if isinstance(text, bytes) else str(text)
            raise CudaError(f"{name}: {said}")
        return results[0] if len(results) == 1 else results


def open_cuda() -> Cuda:
    """The GPU at hand. Raises UserError where cuda-python or a GPU is missing."""
    for name in MODULES:
        try:
            return Cuda(importlib.import_module(name))
        except ImportError:
            continue
    raise UserError("cuda-python is not installed", hint="pip install cuda-python")
