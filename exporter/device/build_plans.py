"""Builds the engines that a bundle plans, one after the other; those that are there stay."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .build_error import EngineError
from .build_network import Effort, serialized
from .build_plugins import ahead_of_time, compiler, load, on_device
from .build_records import Record, fitting, made_of, read_records, write_record
from .builder_log import say
from .bundle_files import digest, write_whole
from .this_gpu import Gpu, available_mib
from .trtexec import trtexec

TIMING = "engines/timing.cache"

Plan = dict[str, Any]  # `EnginePlan` of the manifest
Engines = dict[str, Any]  # `Engines` of the manifest


def build_engines(
    folder: Path,
    trt: Any,
    graphs: Sequence[str] | None,
    done: Callable[[Record], None],
    gpu: Gpu | None = None,
    effort: Effort | None = None,
    force: bool = False,
) -> list[Record]:
    """Build the engines of `graphs`, or those that the defaults need, below the bundle `folder`.

    `trt`: the module; `gpu`: the one at hand, for which engines are built, or None: they are built
    ahead of time for those that the manifest names. Engines that were made of the same are not
    built again unless `force`. Calls `done` with the record of each, old or new, and returns them.
    Raises EngineError on what does not exist or cannot be built.
    """
    engines = read_engines(folder)
    plans = choose(engines["plans"], graphs)
    sm = gpus(engines, gpu)
    weights = digest(folder / "graphs" / "weights.bin")
    records: list[Record] = []
    with TemporaryDirectory(prefix="dqx-") as scratch:
        site = _Site(folder, trt, engines, gpu, in_bounds(folder, gpu, effort), Path(scratch))
        for plan in plans:
            made = made_of(folder, plan["graph"], engines, weights, trt.__version__, sm)
            sealed = fitting(folder, made, engines.get("built", ()))
            record = sealed or fitting(folder, made, read_records(folder))
            if force and sealed:
                raise EngineError(
                    f"{folder} came with the engine of {plan['graph']}, which its manifest states",
                    "Name others with --graph, or build the bundle again",
                )
            if record is None or force:
                record = site.build({**plan, "path": free_path(plan, engines, trt)}, made)
                write_record(folder, record)
            else:
                say(f"{record['path']} is there, built of the same")
            records.append(record)
            done(record)
    return records


def read_engines(folder: Path) -> Engines:
    """The manifest's section on engines. Raises EngineError where there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise EngineError(f"{folder} has no manifest.json", "Give the folder of a bundle")
    engines = json.loads(path.read_text(encoding="utf-8")).get("engines")
    if engines is None:
        raise EngineError(
            f"{folder} is made for a runtime that has no engines",
            "Build it for a target that has some: `dqexport targets`",
        )
    return dict(engines)


def choose(plans: Sequence[Plan], graphs: Sequence[str] | None) -> list[Plan]:
    """The plans of the named graphs; None: of those that the bundle's defaults need."""
    if graphs is None:
        return [plan for plan in plans if plan["default"]]
    by_name = {plan["graph"]: plan for plan in plans}
    for name in graphs:
        if name not in by_name:
            raise EngineError(f"there is no graph `{name}`", f"There are {', '.join(by_name)}")
    return [by_name[name] for name in graphs]


def gpus(engines: Engines, gpu: Gpu | None) -> list[int]:
    """Compute capabilities that an engine is for. Raises EngineError where `gpu` is another."""
    if gpu is None:
        return list(engines["sm"])
    if gpu.sm not in engines["sm"]:
        listed = "/".join(map(str, engines["sm"]))
        raise EngineError(
            f"{gpu.name} is SM {gpu.sm}; the bundle is made for SM {listed}", elsewhere(engines)
        )
    return [gpu.sm]


def elsewhere(engines: Engines) -> str:
    """What to do on a machine that is not the one a bundle is made for."""
    listed = "/".join(map(str, engines["sm"]))
    return f"Copy the bundle to a machine with SM {listed} and run `python build_engine.py` in it"


def in_bounds(folder: Path, gpu: Gpu | None, effort: Effort | None) -> Effort:
    """`effort` with the limits and timings of the GPU at hand.

    Where it shares memory with the CPU the builder may have half of what is left: by itself it
    tries kernels with all there is, and the system ends it.
    """
    effort = effort or Effort()
    if gpu is None:
        return effort
    if effort.workspace_mib is None and gpu.shares_memory:
        left = available_mib()
        effort = replace(effort, workspace_mib=left // 2 if left else None)
    return replace(effort, timing_cache=folder / TIMING)


def free_path(plan: Plan, engines: Engines, trt: Any) -> str:
    """Where to write the engine of a plan: not over one that the manifest states the digest of."""
    path = str(plan["path"])
    if path not in [one["path"] for one in engines.get("built", ())]:
        return path
    stem, dot, suffix = path.rpartition(".")
    return f"{stem}-{trt.__version__}{dot}{suffix}"


class _Site:
    """All that is the same for the engines of one run; the plugins are loaded for the first."""

    def __init__(
        self, folder: Path, trt: Any, engines: Engines, gpu: Gpu | None, effort: Effort,
        scratch: Path,
    ) -> None:  # fmt: skip
        self._folder, self._trt, self._engines, self._gpu = folder, trt, engines, gpu
        self._effort, self._scratch = effort, scratch
        self._library: Path | None = None

    def build(self, plan: Plan, made: Record) -> Record:
        """Build and write the engine of a plan; its record. `made`: the part that is known."""
        folder, trt, plugins = self._folder, self._trt, self._engines.get("plugins")
        if plugins is not None and self._library is None:
            self._library = self._load(plugins)
        ahead = [] if self._gpu else made["sm"]
        say(trtexec(folder, plan, made["runtime"], ahead, self._library, self._effort,
                    trt.__version__))  # fmt: skip
        (folder / plan["path"]).parent.mkdir(exist_ok=True)
        graph = folder / "graphs" / f"{plan['graph']}.onnx"
        start = time.monotonic()
        engine = serialized(trt, graph, ahead, plan["profiles"], plugins is not None, self._effort)
        write_whole(folder / plan["path"], engine)
        return made | {
            "path": plan["path"],
            "sha256": digest(folder / plan["path"]),
            "bytes": (folder / plan["path"]).stat().st_size,
            "seconds": round(time.monotonic() - start, 1),
        }

    def _load(self, plugins: str) -> Path:
        build = compiler(self._folder, plugins)
        library = (
            on_device(self._folder, build, self._gpu.sm)
            if self._gpu
            else ahead_of_time(self._folder, build, self._engines["sm"], self._scratch)
        )
        load(self._trt, library)
        return library
