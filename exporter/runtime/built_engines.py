"""The engines that a bundle has, and why one of them is not to be used here.

Engines that a bundle came with stand in manifest.json under `engines.built`; those that were built
on the device in engines/engines.json. A record holds the digests of the graph and the weights that
its engine was made of. They are compared with the digests that the manifest states, not with those
of the files: reading gigabytes at every start takes too long, and an engine has its weights within
and never reads that file. So an engine that is left of an earlier build of the bundle is refused,
and so are one for another GPU, version or plugin library, and a file of another length than was
written. A changed byte in a file of the same length is not noticed; `dqexport verify` reads every
byte of those that the manifest lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError

RECORD = "engines/engines.json"
WEIGHTS = "graphs/weights.bin"


@dataclass(frozen=True)
class BuiltEngine:
    """One engine, and what it was built of and for."""

    graph: str
    path: str  # relative to the bundle
    runtime: str  # tensorrt or tensorrt-rtx
    version: str
    sm: tuple[int, ...]
    graph_sha256: str
    weights_sha256: str
    plugins: str | None  # digest of the plugin library's sources; None: no plugins
    bytes: int | None  # None: not recorded
    seconds: float | None  # that building it took, likewise


@dataclass(frozen=True)
class BundleEngines:
    """The manifest's section on engines with all that were built."""

    folder: Path
    runtime: str
    batch: int  # sequences at once, at most
    plugins: str | None
    built: tuple[BuiltEngine, ...]  # on the device first
    digests: Mapping[str, str]  # SHA-256 of the bundle's files by path, as the manifest has them

    def of(self, graph: str) -> list[BuiltEngine]:
        """The engines of one graph."""
        return [engine for engine in self.built if engine.graph == graph]


@dataclass(frozen=True)
class Here:
    """What this machine would run an engine with."""

    runtime: str
    version: str
    sm: int  # of the GPU: its compute capability × 10


def read_engines(folder: Path) -> BundleEngines | None:
    """The engines of the bundle in `folder`; None where its runtime reads the graphs themselves.

    Raises UserError where engines.json is not understood.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    engines = manifest.get("engines")
    if engines is None:
        return None
    files = {file["path"]: file for file in manifest.get("files", ())}
    sealed = [
        _engine(one | {"bytes": files.get(one["path"], one).get("bytes")})
        for one in engines.get("built", ())
    ]
    return BundleEngines(
        folder=folder,
        runtime=engines["runtime"],
        batch=engines.get("batch", 1),
        plugins=engines.get("plugins"),
        built=(*_built_here(folder / RECORD), *sealed),
        digests={path: file["sha256"] for path, file in files.items()},
    )


def _built_here(path: Path) -> list[BuiltEngine]:
    if not path.is_file():
        return []
    try:
        return [_engine(one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}", hint="delete it and build the engines again"
        ) from error


def _engine(record: dict[str, Any]) -> BuiltEngine:
    return BuiltEngine(
        graph=record["graph"],
        path=record["path"],
        runtime=record["runtime"],
        version=record["version"],
        sm=tuple(record["sm"]),
        graph_sha256=record["graph_sha256"],
        weights_sha256=record["weights_sha256"],
        plugins=record.get("plugins"),
        bytes=record.get("bytes"),
        seconds=record.get("seconds"),
    )


def why_refused(engine: BuiltEngine, engines: BundleEngines, here: Here) -> str | None:
    """Why an engine of the bundle is not to be loaded here; None: it may be."""
    made = f"{engine.path} was built"
    if (engine.runtime, engine.version) != (here.runtime, here.version):
        return f"{made} by {engine.runtime} {engine.version}, here is {here.runtime} {here.version}"
    if here.sm not in engine.sm:
        return f"{made} for SM {'/'.join(map(str, engine.sm))}, here is SM {here.sm}"
    graph = f"graphs/{engine.graph}.onnx"
    if engines.digests.get(graph) != engine.graph_sha256:
        return f"{made} of another graph than {graph}"
    if engines.digests.get(WEIGHTS) != engine.weights_sha256:
        return f"{made} over other weights than {WEIGHTS}"
    if engines.plugins != engine.plugins:
        return f"{made} with other plugins than those of this bundle"
    return _why_unreadable(engines.folder / engine.path, engine)


def _why_unreadable(file: Path, engine: BuiltEngine) -> str | None:
    if not file.is_file():
        return f"{engine.path} is missing"
    size = file.stat().st_size
    if engine.bytes is not None and size != engine.bytes:
        return f"{engine.path} has {size} bytes, not {engine.bytes} as built"
    return None
