"""`Session` over an engine of TensorRT, or of TensorRT for RTX."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .bound_run import BoundRun, Buffers
from .contexts import Contexts
from .cuda_graphs import CudaGraphs
from .cuda_runtime import Cuda
from .device_buffers import DeviceMemory
from .engine_facts import EngineFacts
from .errors import UserError
from .feeds import WHOLE, feeds_of, lengthened, shortened
from .profiles import WINDOW, Profile, Shape, choose_profile
from .runs_on import RunsOn
from .session import Array, Bools, Cache, Ints, Reductions


@dataclass(frozen=True, eq=False)
class TrtCache:
    """Keys and values [rows, kv heads, capacity, K] on the device, by input name."""

    rows: int
    length: int
    buffers: Mapping[str, DeviceMemory]


class TrtSession:
    """One engine, loaded. Buffers are made once for each profile that is used.

    Only reductions that are asked for come back to the host. Calls that repeat in shape are
    recorded as CUDA graphs, copies included.
    """

    def __init__(
        self, trt: Any, engine: Any, cuda: Cuda, runs_on: RunsOn, cuda_graphs: bool = True
    ) -> None:
        """`engine` as the module `trt` deserialized it. Raises UserError for too little memory."""
        self.runs_on = runs_on
        self._cuda, self._facts = cuda, EngineFacts(trt, engine)
        self._contexts = Contexts(trt, engine, cuda, cuda_graphs)
        self._buffers: dict[int, tuple[Any, Buffers]] = {}  # by profile, with a context
        self._graphs = CudaGraphs(cuda, self._contexts.record)
        self._idle: dict[int, list[Mapping[str, DeviceMemory]]] = {}  # of caches, by their rows
        self._layers: Any = None

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: Array,
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        """See `session.Session`. An engine with a cache that is not given one forgets.

        Raises UserError where a shape is beyond the profiles of the engine.
        """
        if shadow is None:  # profiles start at one: a shadow that stands nowhere is seen by nobody
            shadow = np.full((len(ids), 1), -1, np.int64)
        feeds = feeds_of(
            self._facts.inputs, self._facts.capacity, ids, key_mask, window, special_bias,
            cfg_scale, temperature, start, causal, shadow,
        )  # fmt: skip
        if cache is None and self._facts.kept:
            cache = self.new_cache(*feeds["key_mask"].shape)
        assert cache is None or isinstance(cache, TrtCache)
        names = sorted(wanted)
        if not len(window):
            self._predict((), feeds, cache)
            shape = (len(ids) // (1 if cfg_scale is None else 2), 0)
            return {name: np.empty(shape) for name in names}
        return self._predict(tuple(names), feeds, cache)

    def restrict(self, allowed: Bools) -> None:
        """See `session_ort.OrtSession`: an engine cannot."""
        raise UserError(
            "engines predict every token of the vocabulary",
            hint="use --provider cuda or cpu with --allow-ids and --forbid-ids",
        )

    def new_cache(self, rows: int, length: int) -> TrtCache:
        """See `session.Session`. Memory of caches that are gone is used again."""
        assert self._facts.kept, "the engine was not opened for calls with a cache"
        idle = self._idle.setdefault(rows, [])
        buffers: Mapping[str, DeviceMemory] = idle.pop() if idle else self._new_buffers(rows)
        for buffer in buffers.values():
            self._cuda.clear(buffer.address, buffer.size)
        cache = TrtCache(rows, length, buffers)
        weakref.finalize(cache, idle.append, buffers)
        return cache

    def watch_layers(self, report: Callable[[str, float], None]) -> None:
        """From now on `report` gets the name and the milliseconds of every layer that runs."""
        self._graphs.on = False
        self._layers = self._contexts.profiler(report)
        for context, _ in self._buffers.values():
            context.profiler = self._layers

    def _new_buffers(self, rows: int) -> dict[str, DeviceMemory]:
        return {
            name: DeviceMemory(self._cuda, self._facts.bytes_of(name, rows))
            for name in self._facts.kept
        }

    def _predict(
        self, names: tuple[str, ...], feeds: dict[str, Array], cache: TrtCache | None
    ) -> Reductions:
        """Run for parts of the window that the profile holds; what is fed twice is kept once."""
        shapes: dict[str, Shape] = {name: array.shape for name, array in feeds.items()}
        kept = {} if cache is None else cache.buffers
        shapes |= {name: self._facts.shape_of(name, cache.rows) for name in kept if cache}
        profile = choose_profile(self._facts.profiles, shapes)
        window, parts = feeds[WINDOW], list[Reductions]()
        for first in range(0, len(window), profile.window):
            part = window[first : first + profile.window]
            feeds[WINDOW] = lengthened(part, profile.window)
            shapes[WINDOW] = feeds[WINDOW].shape
            found = self._run(profile, names, feeds, shapes, kept)
            parts.append(shortened(found, len(part)))
        return {name: _joined(name, [part[name] for part in parts]) for name in names}

    def _run(
        self,
        profile: Profile,
        names: tuple[str, ...],
        feeds: Mapping[str, Array],
        shapes: Mapping[str, Shape],
        kept: Mapping[str, DeviceMemory],
    ) -> Reductions:
        shared, buffers = self._place(profile)
        for name, array in feeds.items():
            buffers.inputs[name].host(array.shape)[...] = array
        addresses = {name: memory.address for name, memory in kept.items()}

        def bound(context: Any) -> BoundRun:
            return BoundRun(self._facts, context, self._cuda, buffers, names, shapes, addresses)

        key = (profile.index, names, tuple(shapes.items()), tuple(addresses.values()))
        run = self._graphs.run(
            key, lambda: bound(shared), lambda: bound(self._new_context(profile))
        )
        self._cuda.wait()
        return {name: buffers.outputs[name].host(run.shapes[name]).copy() for name in names}

    def _place(self, profile: Profile) -> tuple[Any, Buffers]:
        """A context for the shapes of a profile, and its buffers."""
        if profile.index not in self._buffers:
            context = self._new_context(profile)
            buffers = Buffers(self._facts, context, self._cuda, profile)
            self._buffers[profile.index] = context, buffers
        return self._buffers[profile.index]

    def _new_context(self, profile: Profile) -> Any:
        context = self._contexts.new(profile)
        if self._layers is not None:
            context.profiler = self._layers
        return context


def _joined(name: str, parts: list[Array]) -> Array:
    return parts[0] if name in WHOLE else np.concatenate(parts, axis=1)
