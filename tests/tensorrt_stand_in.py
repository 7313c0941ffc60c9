"""TensorRT's module, as far as the decode loop uses it, over ONNX Runtime on the CPU: for tests.

An engine is a JSON file that names an ONNX graph and its profiles. An execution reads and writes
the addresses that were set, in the memory of a `CudaStandIn`. What TensorRT forbids fails a test:
shapes beyond the profile, a missing address, a context that is changed while a recording of it
lives, a capture of a context that has not run with these shapes before, outputs of caches that lie
elsewhere than their inputs.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from exporter.engine_plans import profiles
from exporter.graph_kind import GraphKind
from exporter.runtime.bundle import Bundle
from exporter.runtime.settings import Settings
from exporter.tensor_files import sha256
from tests.cuda_stand_in import CudaStandIn

VERSION = "9.9.9"
SCRATCH = 4096  # bytes that every context works in
NAMES = {
    "tensor(float)": ("FLOAT", np.float32),
    "tensor(float16)": ("HALF", np.float16),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(bool)": ("BOOL", np.bool_),
}
Shape = tuple[int, ...]


class IOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class Strategy(Enum):
    USER_MANAGED = 2


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class Logger:
    Severity = Severity


class Profiler:
    """The base of what is told about layers."""


@dataclass
class Registry:
    """Plugin libraries that were loaded, by path."""

    loaded: list[str] = field(default_factory=list)

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return self.loaded[0] if self.loaded else None

    def load_library(self, path: str) -> object | None:
        if not Path(path).read_bytes():
            return None
        self.loaded.append(path)
        return path


class GraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class RuntimeConfig:
    """How a context of TensorRT for RTX is made."""

    cuda_graph_strategy: GraphStrategy | None = None
    strategy: Strategy | None = None
    cache: object = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> None:
        self.cache = cache


class TensorrtStandIn(ModuleType):
    """The module; with `rtx` that of TensorRT for RTX. `cuda` is the memory of addresses."""

    ILogger, IProfiler, TensorIOMode = Logger, Profiler, IOMode
    ExecutionContextAllocationStrategy = Strategy
    __version__ = VERSION

    def __init__(self, cuda: CudaStandIn, rtx: bool) -> None:
        super().__init__("tensorrt_stand_in")
        self.configs: list[RuntimeConfig] = []
        if rtx:
            self.IRuntimeCache, self.CudaGraphStrategy = object, GraphStrategy
        self.cuda, self.registry = cuda, Registry()
        self.contexts: list[Context] = []

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def Runtime(self, logger: Any) -> Any:
        """What deserializes engines."""

        def deserialize(content: Any) -> Engine | None:
            try:
                made = json.loads(bytes(content))
            except ValueError:
                logger.log(Severity.ERROR, "Magic tag does not match")
                return None
            return Engine(self, made)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class Engine:
    """A graph in ONNX Runtime with its profiles."""

    device_memory_size_v2 = SCRATCH

    def __init__(self, trt: TensorrtStandIn, made: Mapping[str, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        self.trt, self.spans = trt, made["profiles"]
        self.session = ort.InferenceSession(made["graph"], options)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}
        self.tensors: dict[str, Any] = self.inputs | self.outputs
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(self.spans)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> IOMode:
        return IOMode.INPUT if name in self.inputs else IOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=NAMES[self.tensors[name].type][0])

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(s if isinstance(s, int) else -1 for s in self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[Shape]:
        span = self.spans[index]
        return [
            tuple(s if isinstance(s, int) else span[s][which] for s in self.inputs[name].shape)
            for which in range(3)
        ]

    def create_runtime_config(self) -> RuntimeConfig:
        self.trt.configs.append(RuntimeConfig())
        return self.trt.configs[-1]

    def create_execution_context(self, how: Strategy | RuntimeConfig) -> "Context":
        strategy = how.strategy if isinstance(how, RuntimeConfig) else how
        assert strategy is Strategy.USER_MANAGED
        self.trt.contexts.append(Context(self))
        return self.trt.contexts[-1]


class Context:
    """Shapes and addresses for one execution after the other."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cuda = engine, engine.trt.cuda
        self.index = 0
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.ran: dict[str, Shape] = {}  # the shapes of the last run
        self.scratch = False
        self.recorded = False
        self.profiler: Any = None

    def _change(self) -> None:
        assert not self.recorded, "a recording of this context lives"

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= SCRATCH
        self.cuda.device(address, size)
        self.scratch = True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._change()
        self.index = index
        return index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self._change()
        least, _, most = self.engine.get_tensor_profile_shape(name, self.index)
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> Shape:
        if name in self.shapes:
            return self.shapes[name]
        rows, length = self.shapes["input_ids"]
        sizes = {"rows": rows, "B": rows // (2 if "cfg_scale" in self.engine.inputs else 1)}
        sizes |= {"W": self.shapes["window"][0], "S": length, "Q": length}
        return tuple(s if isinstance(s, int) else sizes[s] for s in self.engine.tensors[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._change()
        self.addresses[name] = address
        return name in self.engine.tensors

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch
        if self.cuda.captured is not None:
            if self.ran != self.shapes:
                return False
            self.recorded = True
        elif self.recorded:
            raise AssertionError("a recording of this context lives")
        self.ran = dict(self.shapes)
        views = {name: self._view(name) for name in self.engine.tensors}
        for name in self.engine.inputs:
            out = self.addresses.get(f"{name}_out", self.addresses[name])
            assert out == self.addresses[name], "a cache is written elsewhere"
        self.cuda.enqueue(lambda: self._run(views))
        return True

    def _view(self, name: str) -> npt.NDArray[Any]:
        shape, dtype = (
            self.get_tensor_shape(name),
            np.dtype(NAMES[self.engine.tensors[name].type][1]),
        )
        size = math.prod(shape) * dtype.itemsize
        return self.cuda.device(self.addresses[name], size).view(dtype).reshape(shape)

    def _run(self, views: Mapping[str, npt.NDArray[Any]]) -> None:
        feeds = {name: views[name].copy() for name in self.engine.inputs}
        found = self.engine.session.run([*self.engine.outputs], feeds)
        for name, array in zip(self.engine.outputs, found, strict=True):
            views[name][...] = array
        if self.profiler is not None:
            self.profiler.report_layer_time("everything", 1.5)


def install(
    monkeypatch: pytest.MonkeyPatch, cuda: CudaStandIn, runtime: str = "tensorrt-rtx"
) -> TensorrtStandIn:
    """Put both stand-ins where the loop imports TensorRT and cuda-python from."""
    trt = TensorrtStandIn(cuda, runtime == "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, runtime.replace("-", "_"), trt)
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return trt


def write_manifest(bundle: Bundle) -> None:
    """manifest.json with what the loop reads, and the digests of the graphs."""
    files = sorted((bundle.folder / "graphs").iterdir())
    facts = {
        "format": 1,
        "model": asdict(bundle.model),
        "decode": asdict(bundle.decode),
        "runtime": asdict(bundle.runtime),
        "graphs": [asdict(graph) for graph in bundle.graphs],
        "files": [
            {"path": f"graphs/{f.name}", "bytes": f.stat().st_size, "sha256": sha256(f)}
            for f in files
        ],
    }
    (bundle.folder / "manifest.json").write_text(json.dumps(facts))


def write_engines(
    bundle: Path,
    kinds: Sequence[GraphKind],
    settings: Settings,
    canvas: int,
    batch: int = 1,
    runtime: str = "tensorrt-rtx",
) -> None:
    """Engines of `kinds` below a bundle without any, with the records that a device writes."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    digests = {file["path"]: file["sha256"] for file in manifest["files"]}
    manifest["engines"] = {"runtime": runtime, "sm": [89], "precision": "fp32",
                           "batch": batch, "plugins": None, "plans": [], "built": []}  # fmt: skip
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "engines").mkdir(exist_ok=True)
    records = []
    for kind in kinds:
        file, graph = bundle / "engines" / f"{kind.name}.plan", f"graphs/{kind.name}.onnx"
        spans = profiles(kind, settings, canvas, batch)
        file.write_text(json.dumps({"graph": str(bundle / graph), "profiles": spans}))
        records.append({
            "graph": kind.name, "path": f"engines/{kind.name}.plan", "sha256": "0" * 64,
            "graph_sha256": digests[graph], "weights_sha256": digests["graphs/weights.bin"],
            "runtime": runtime, "version": VERSION, "sm": [89], "plugins": None,
            "bytes": file.stat().st_size, "seconds": 1.5,
        })  # fmt: skip
    (bundle / "engines" / "engines.json").write_text(json.dumps(records))
