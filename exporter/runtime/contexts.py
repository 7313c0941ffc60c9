"""Execution contexts of an engine, which all work in one piece of memory, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cuda_runtime import Cuda
from .device_buffers import DeviceMemory
from .errors import UserError
from .profiles import Profile


class Contexts:
    """Makes contexts. TensorRT for RTX compiles kernels in them, which they share here.

    It also makes CUDA graphs itself, after it has replaced the kernels that a new shape starts
    with: recording its calls from outside would keep those.
    """

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, cuda_graphs: bool) -> None:
        """Raises UserError for too little memory."""
        self._trt, self._engine, self._cuda = trt, engine, cuda
        self._scratch = DeviceMemory(cuda, engine.device_memory_size_v2)
        self._cuda_graphs = cuda_graphs
        self._compiles = hasattr(trt, "IRuntimeCache")
        self._kernels: Any = None  # that were compiled

    @property
    def record(self) -> bool:
        """Whether calls are to be recorded from outside."""
        return self._cuda_graphs and not self._compiles

    def new(self, profile: Profile) -> Any:
        """A context for the shapes of a profile."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        how = self._configuration(strategy) if self._compiles else strategy
        context = self._engine.create_execution_context(how)
        if context is None:
            raise UserError(
                "the engine cannot be set up: TensorRT made no execution context",
                hint="end what else uses the GPU; TensorRT's own message stands above",
            )
        context.set_device_memory(self._scratch.address, self._scratch.size)
        if not context.set_optimization_profile_async(profile.index, int(self._cuda.stream)):
            raise UserError(f"the engine has no profile {profile.index} to set")
        self._cuda.wait()
        return context

    def _configuration(self, strategy: Any) -> Any:
        graphs = self._trt.CudaGraphStrategy
        made = self._engine.create_runtime_config()
        made.set_execution_context_allocation_strategy(strategy)
        made.cuda_graph_strategy = (
            graphs.WHOLE_GRAPH_CAPTURE if self._cuda_graphs else graphs.DISABLED
        )
        self._kernels = self._kernels or made.create_runtime_cache()
        made.set_runtime_cache(self._kernels)
        return made

    def profiler(self, report: Callable[[str, float], None]) -> Any:
        """For a context's `profiler`: passes on the names and milliseconds of its layers."""
        trt = self._trt

        class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                report(layer_name, ms)

        return Profiler()
