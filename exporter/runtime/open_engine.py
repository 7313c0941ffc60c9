"""Loads an engine of a bundle, and says why where it cannot."""

from __future__ import annotations

import importlib
import mmap
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .built_engines import BuiltEngine, BundleEngines, Here, read_engines, why_refused
from .bundle import Bundle, Graph
from .cuda_runtime import open_cuda
from .errors import UserError
from .operators import BUILT, FOLDER
from .runs_on import RunsOn
from .session_trt import TrtSession

NEWEST = "DqxCachedAttention"  # operator of ours: a library that has it has all
MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
INSTALL = {  # by runtime
    "tensorrt": "on Jetson it comes with JetPack: apt-get install python3-libnvinfer; elsewhere"
    " pip install tensorrt",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
}


def open_engine(
    bundle: Bundle, graphs: Sequence[Graph], rows: int, cuda_graphs: bool = True
) -> TrtSession:
    """A session over the engine of the first of `graphs` that has one which fits here.

    `rows`: sequences that will be decoded together. Raises UserError with the reason where there is
    none: its message can follow `no engine runs here: `.
    """
    engines = read_engines(bundle.folder)
    if engines is None:
        raise UserError(
            "the bundle has no engines: it is made for ONNX Runtime",
            hint="use --provider cuda or cpu, or build it for a target with engines",
        )
    if rows > engines.batch:
        raise UserError(
            f"its engines take {engines.batch} sequences at once, not {rows}",
            hint="drop --batch, or build the bundle with --engine-batch",
        )
    built = [engine for graph in graphs for engine in engines.of(graph.name)]
    if not built:
        raise UserError(
            f"no engine of {graphs[0].name} is built",
            hint=f"{sys.executable} {bundle.folder / 'build_engine.py'} --graph {graphs[0].name}",
        )
    trt = _module(engines.runtime)
    cuda = open_cuda()
    engine = _fitting(built, engines, Here(engines.runtime, trt.__version__, cuda.capability()))
    if engines.plugins is not None:
        _load_plugins(trt, bundle.folder, cuda.capability())
    runs_on = RunsOn(engines.runtime, engines.runtime, trt.__version__, engine.path)
    loaded = _deserialized(trt, bundle.folder / engine.path)
    return TrtSession(trt, loaded, cuda, runs_on, cuda_graphs)


def _module(runtime: str) -> Any:
    reasons = []
    for name in MODULES[runtime]:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{error}")
    raise UserError(f"{runtime} is not installed ({reasons[0]})", hint=INSTALL[runtime])


def _fitting(built: Sequence[BuiltEngine], engines: BundleEngines, here: Here) -> BuiltEngine:
    reasons = []
    for engine in built:
        reason = why_refused(engine, engines, here)
        if reason is None:
            return engine
        reasons.append(reason)
    build = engines.folder / "build_engine.py"
    raise UserError("; ".join(reasons), hint=f"build it here: {sys.executable} {build}")


def _load_plugins(trt: Any, bundle: Path, sm: int) -> None:
    """Register the operators of the bundle with TensorRT."""
    folder = bundle / FOLDER
    library = folder / BUILT / f"libdqx-trt-{platform.machine()}-sm{sm}.so"
    build = folder / "trt_plugins" / "build.py"
    if not library.is_file():
        raise UserError(
            f"{library.relative_to(bundle)}, with the plugins of its engines, is not built",
            hint=f"{sys.executable} {build} --sm {sm}",
        )
    registry = trt.get_plugin_registry()
    if registry.get_creator(NEWEST, "1", "dqexport") is not None:
        return  # an earlier session loaded it; a name can be registered once
    if registry.load_library(str(library)) is None:
        raise UserError(
            f"{library.relative_to(bundle)} cannot be loaded",
            hint=f"build it again: {sys.executable} {build} --sm {sm}",
        )


def _deserialized(trt: Any, file: Path) -> Any:
    messages: list[str] = []
    runtime = trt.Runtime(_logger(trt, messages))  # lives as long as what it makes
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):  # not read into memory of its own: on Jetson the GPU shares it
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise UserError(
            f"{file.name} cannot be loaded: {'; '.join(messages) or 'no reason given'}",
            hint="where memory is short end what else uses the GPU; else build the engine again"
            " with the bundle's build_engine.py",
        )
    return engine


def _logger(trt: Any, messages: list[str]) -> Any:
    """A logger that keeps errors, and shows them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)
                print(message, file=sys.stderr)

    return Log()
