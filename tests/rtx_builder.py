"""TensorRT for RTX parses models and builds engines over a plugin library, in a process of its own.

A plugin that is wrong may end the process; and the parser looks for `libtensorrt_rtx.so`, where the
package has `libtensorrt_rtx.so.1` alone: a link to it must lie in LD_LIBRARY_PATH when the process
starts.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """A model, and for each input that varies its least, best and largest shape."""

    model: bytes
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]
    aliased: bool = True  # whether an output may have the memory of an input


@dataclass(frozen=True)
class Built:
    """What became of a model."""

    layers: Sequence[str]  # their types, once it is parsed
    errors: Sequence[str]  # that were logged
    engine: bytes | None
    said: str = ""  # on stderr by the process, where a plugin says what it refuses


def build_all(
    jobs: Sequence[Job], library: Path | None, folder: Path, sm: Sequence[int] = (86, 120)
) -> list[Built]:
    """Build each job for the GPUs `sm`; files go to `folder`, a new one."""
    folder.mkdir(parents=True)
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None and spec.submodule_search_locations
    packaged = Path(spec.submodule_search_locations[0]) / "libtensorrt_rtx.so.1"
    (folder / "libtensorrt_rtx.so").symlink_to(packaged)
    for number, job in enumerate(jobs):
        (folder / f"{number}.onnx").write_bytes(job.model)
    settings = {
        "library": str(library) if library else None, "sm": list(sm),
        "jobs": [{"shapes": job.shapes, "aliased": job.aliased} for job in jobs],
    }  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps(settings))
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((folder / "results.json").read_text())
    files = [folder / f"{number}.plan" for number in range(len(jobs))]
    engines = [file.read_bytes() if file.is_file() else None for file in files]
    return [
        Built(result["layers"], result["errors"], engine, done.stderr)
        for result, engine in zip(results, engines, strict=True)
    ]


def shapes_of(
    model: Any, spans: Mapping[str, Sequence[int]]
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Least, best and largest shape of every input of an ONNX model that varies, for its spans."""
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if any(axis.dim_param for axis in axes):
            least, best, most = (
                tuple(spans[a.dim_param][which] if a.dim_param else a.dim_value for a in axes)
                for which in range(3)
            )
            found[value.name] = (least, best, most)
    return found


def _run(folder: Path) -> None:
    """The process: reads jobs.json, writes results.json and the engines."""
    import tensorrt_rtx_bindings as trt

    settings = json.loads((folder / "jobs.json").read_text())
    if settings["library"]:
        assert trt.get_plugin_registry().load_library(settings["library"]) is not None
    results = []
    for number, job in enumerate(settings["jobs"]):
        model = (folder / f"{number}.onnx").read_bytes()
        built = _built(trt, model, job, settings["sm"])
        if built.engine is not None:
            (folder / f"{number}.plan").write_bytes(built.engine)
        results.append({"layers": built.layers, "errors": built.errors})
    (folder / "results.json").write_text(json.dumps(results))


def _built(trt: Any, model: bytes, job: dict[str, Any], sm: Sequence[int]) -> Built:
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        return Built([], log.errors, None)
    layers = [network.get_layer(i).type.name for i in range(network.num_layers)]
    config = builder.create_builder_config()
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, job["aliased"])
    profile = builder.create_optimization_profile()
    for name, span in job["shapes"].items():
        profile.set_shape(name, *span)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(sm)
    for index, one in enumerate(sm):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{one}"), index)
    engine = builder.build_serialized_network(network, config)
    return Built(layers, log.errors, None if engine is None else bytes(engine))


def _log(trt: Any) -> Any:
    """A logger that keeps errors."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
