"""Builds the engines of a bundle. Needs Python 3.10 and TensorRT's Python module, nothing else.

    python build_engine.py                        the engines that the bundle's defaults need
    python build_engine.py --graph full-sample    those of the graphs that are named

What is built stands in manifest.json under `engines`: for each graph the shapes of its inputs, one
optimization profile a range of canvas lengths. An engine is good for one version of the runtime,
for the GPUs that it was built for and for the graph that it was made of; all of that is written to
engines/engines.json beside it. Engines that the bundle came with stand in its manifest instead.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODULES = {"tensorrt-rtx": "tensorrt_rtx_bindings"}  # by runtime
RECORD = "engines/engines.json"
CHUNK = 1 << 20  # bytes that are hashed at once

Plan = dict[str, Any]  # an entry of `engines.plans` in the manifest


class EngineError(Exception):
    """What cannot be built or used, and why."""


def build_engines(
    folder: Path, trt: Any, graphs: Sequence[str] | None, done: Callable[[Plan], None]
) -> list[dict[str, Any]]:
    """Build the engines of `graphs`, or those that the defaults need, below the bundle `folder`.

    Calls `done` with the plan of each when it is written; returns the records that it adds to
    engines.json. Raises EngineError on a graph that does not exist or cannot be built.
    """
    engines = json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("engines")
    if engines is None:
        raise EngineError(f"{folder} is made for a runtime that has no engines")
    records, sealed = [], [one["graph"] for one in engines.get("built", ())]
    plans = choose(engines["plans"], graphs)
    for plan in plans:
        if plan["graph"] in sealed:  # the manifest has its digest
            raise EngineError(
                f"{folder} came with the engine of {plan['graph']}; name others with --graph"
            )
    for plan in plans:
        graph, engine = folder / "graphs" / f"{plan['graph']}.onnx", folder / plan["path"]
        engine.parent.mkdir(exist_ok=True)
        partial = engine.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(serialized(trt, graph, engines["sm"], plan["profiles"]))
        os.replace(partial, engine)
        records.append(
            {
                "graph": plan["graph"],
                "path": plan["path"],
                "sha256": digest(engine),
                "graph_sha256": digest(graph),
                "weights_sha256": digest(graph.with_name("weights.bin")),
                "runtime": engines["runtime"],
                "version": trt.__version__,
                "sm": engines["sm"],
            }
        )
        _record(folder / RECORD, records)
        done(plan)
    return records


def why_refused(
    record: dict[str, Any], runtime: str, version: str, sm: int, graph_sha256: str,
    weights_sha256: str,
) -> str | None:  # fmt: skip
    """Why the engine of a record is not to be loaded here; None: it may be.

    `sm` is the GPU at hand; digests are those of the graph and the weights as they are now.
    """
    made = f"{record['path']} was built"
    if (record["runtime"], record["version"]) != (runtime, version):
        return f"{made} by {record['runtime']} {record['version']}, here is {runtime} {version}"
    if sm not in record["sm"]:
        return f"{made} for SM {'/'.join(map(str, record['sm']))}, here is SM {sm}"
    if record["graph_sha256"] != graph_sha256:
        return f"{made} of another graph than graphs/{record['graph']}.onnx"
    if record["weights_sha256"] != weights_sha256:
        return f"{made} over other weights than graphs/weights.bin"
    return None


def choose(plans: Sequence[Plan], graphs: Sequence[str] | None) -> list[Plan]:
    """The plans of the named graphs; None: of those that the bundle's defaults need."""
    if graphs is None:
        return [plan for plan in plans if plan["default"]]
    by_name = {plan["graph"]: plan for plan in plans}
    for name in graphs:
        if name not in by_name:
            raise EngineError(f"there is no graph {name!r}; there are {', '.join(by_name)}")
    return [by_name[name] for name in graphs]


def serialized(trt: Any, graph: Path, sm: Sequence[int], profiles: Sequence[dict[str, Any]]) -> Any:
    """The engine of an ONNX file for the GPUs `sm` as a buffer.

    Each of `profiles` gives the least, best and most of every axis that the graph names. The
    network is strongly typed: types of the arithmetic are those of the graph.
    """
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):  # from its file, so that weights.bin is found
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise EngineError(f"{graph.name} is not understood: {'; '.join(reasons)}")
    _let_attention_be_composed(trt, network)
    config = builder.create_builder_config()
    for spans in profiles:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shapes = [shape_of(tensor, spans, which) for which in range(3)]
            if -1 in tensor.shape:
                profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(sm)
    for index, one in enumerate(sm):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{one}"), index)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(
            f"no engine of {graph.name}: {'; '.join(log.errors) or 'no reason given'}"
        )
    return engine


def shape_of(tensor: Any, spans: dict[str, Any], which: int) -> list[int]:
    """The shape of an input with its variable axes at their least, best or most."""
    return [
        size if size != -1 else spans[tensor.get_dimension_name(axis)][which]
        for axis, size in enumerate(tensor.shape)
    ]


def _log(trt: Any) -> Any:
    """A logger that keeps errors: a host without a GPU has some that do no harm."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _let_attention_be_composed(trt: Any, network: Any) -> None:
    """Let the builder make attention of other layers where it has no fused kernel for it."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to cast
            layer.attention.decomposable = True


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _record(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Put `records` in the place of those of the same graphs."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    merged = {record["graph"]: record for record in [*old, *records]}
    path.write_text(json.dumps(list(merged.values()), indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """The command line; 1 on an error."""
    parser = argparse.ArgumentParser(description="Build the engines of a bundle.")
    here = Path(__file__).parent
    parser.add_argument("bundle", nargs="?", type=Path, default=here, help="default: this folder")
    parser.add_argument("--graph", action="append", help="name of a graph; may be repeated")
    options = parser.parse_args()
    manifest = options.bundle / "manifest.json"
    if not manifest.is_file():
        print(f"error: {options.bundle} has no manifest.json", file=sys.stderr)
        return 1
    engines = json.loads(manifest.read_text(encoding="utf-8")).get("engines") or {}
    module = MODULES.get(engines.get("runtime", ""), "tensorrt")
    try:
        trt = importlib.import_module(module)
    except ImportError as error:
        print(f"error: the module {module} cannot be imported: {error}", file=sys.stderr)
        return 1
    try:
        build_engines(options.bundle, trt, options.graph, lambda p: print(p["path"], flush=True))
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
