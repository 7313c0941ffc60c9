"""`Session` over ONNX Runtime."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .bundle import Bundle, Graph
from .device_calls import TYPES, DeviceCalls
from .errors import UserError
from .feeds import feeds_of, lengthened, shortened
from .operators import find_library
from .ort_setup import (
    check_provider,
    load_graph,
    recordable,
    register,
    session_options,
    short_name,
    usable_providers,
)
from .runs_on import RunsOn
from .session import Array, Bools, Cache, Ints, Reductions

if TYPE_CHECKING:
    import onnxruntime as ort


SUPPRESSED = -1e4  # on the logits of ids that must not be predicted, as the graphs have it
DEVICES = {"CUDAExecutionProvider": "cuda"}  # where other providers keep tensors: cpu


@dataclass(frozen=True)
class OrtCache:
    """Keys and values [rows, kv heads, length, K] on the device that computes, by input name."""

    rows: int
    length: int
    buffers: dict[str, ort.OrtValue]


class OrtSession:
    """One graph of a bundle, loaded. Only the inputs it has and the outputs asked for are bound."""

    def __init__(
        self,
        session: ort.InferenceSession,
        file: str = "",
        again: Callable[[Path], ort.InferenceSession] | None = None,
        calls: DeviceCalls | None = None,
    ) -> None:
        """`file`: of the bundle, for those who ask what runs; `again`: loads it with a profile.

        `calls`: how it runs where inputs and outputs are to stay on the device.
        """
        import onnxruntime as ort

        self._session, self._again, self._calls = session, again, calls
        self._idle: dict[tuple[int, int], list[dict[str, ort.OrtValue]]] = {}  # of caches
        provider = short_name(session.get_providers()[0])
        self.runs_on = RunsOn(provider, "onnxruntime", ort.__version__, file)
        outputs = {o.name for o in session.get_outputs()}
        inputs = session.get_inputs()
        self._inputs = {i.name for i in inputs}
        self._biases = [i for i in session.get_overridable_initializers() if i.name == "suppress"]
        self._suppress: dict[str, Array] = {}  # in the place of the graph's own
        self._kept = [i for i in inputs if f"{i.name}_out" in outputs]
        sizes = [i.shape[1] for i in inputs if i.name == "key_mask"]
        self._capacity = sizes[0] if self._kept and isinstance(sizes[0], int) else None

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        """See `session.Session`. A graph with a cache that is not given one forgets."""
        feeds = feeds_of(
            self._inputs, self._capacity, ids, key_mask, window, special_bias, cfg_scale,
            temperature, start, causal, shadow,
        )  # fmt: skip
        names = sorted(wanted)
        if cache is None and self._kept:
            cache = self.new_cache(*feeds["key_mask"].shape)
        if self._calls is not None:
            return self._run_on_device(names, feeds, cache, len(window))
        if cache is None:
            feeds |= self._suppress
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        assert isinstance(cache, OrtCache)
        if len(window):
            return dict(zip(names, self._run_bound(names, feeds, cache), strict=True))
        self._run_bound([], feeds, cache)
        shape = (len(ids) // (1 if cfg_scale is None else 2), 0)
        return {name: np.empty(shape) for name in names}

    def _run_on_device(
        self, names: list[str], feeds: dict[str, Array], cache: Cache | None, window: int
    ) -> Reductions:
        """The first `window` positions of all outputs `names`."""
        assert self._calls is not None
        assert cache is None or isinstance(cache, OrtCache)
        feeds |= self._suppress | {"window": lengthened(feeds["window"])}
        rows, fed = feeds["input_ids"].shape
        sizes = {"rows": rows, "B": rows // (2 if "cfg_scale" in self._inputs else 1)}
        sizes |= {"S": fed, "Q": fed, "W": len(feeds["window"]), "C": feeds["key_mask"].shape[1]}
        kept = {} if cache is None else cache.buffers
        found = self._calls.run(names, feeds, sizes, kept)
        return shortened(dict(zip(names, found, strict=True)), window)

    def restrict(self, allowed: Bools) -> None:
        """From now on predict only ids that are `allowed` [vocabulary]."""
        if not self._biases:
            raise UserError(
                "the graphs of this bundle predict every token of the vocabulary",
                hint="build it again, or drop --allow-ids and --forbid-ids",
            )
        bias = np.full(self._biases[0].shape, SUPPRESSED, np.float32)  # rows of the head
        bias[: len(allowed)][allowed] = 0.0
        self._suppress = {"suppress": bias}

    def new_cache(self, rows: int, length: int) -> OrtCache:
        """See `session.Session`. On a device memory of caches that are gone is used again."""
        assert self._kept, "the graph was not opened for calls with a cache"
        if self._calls is None:
            return OrtCache(rows, length, self._new_buffers(rows, length))
        idle = self._idle.setdefault((rows, length), [])  # addresses that calls know already
        cache = OrtCache(rows, length, idle.pop() if idle else self._new_buffers(rows, length))
        weakref.finalize(cache, idle.append, cache.buffers)
        return cache

    def _new_buffers(self, rows: int, length: int) -> dict[str, ort.OrtValue]:
        import onnxruntime as ort

        device = DEVICES.get(self._session.get_providers()[0], "cpu")
        buffers = {}
        for value in self._kept:
            sizes = {"rows": rows, "C": length}
            empty = np.zeros([sizes.get(size, size) for size in value.shape], TYPES[value.type])
            buffers[value.name] = ort.OrtValue.ortvalue_from_numpy(empty, device, 0)
        return buffers

    def profiled(self, calls: Callable[[], None], prefix: Path) -> Path:
        """Run `calls` of this session with times of all nodes; the JSON file with these."""
        assert self._again is not None
        kept, self._session = (self._session, self._calls), self._again(prefix)
        if self._calls is not None:
            self._calls = DeviceCalls(self._session, self._calls.device, record=False)
        try:
            calls()
            return Path(self._session.end_profiling())
        finally:
            self._session, self._calls = kept

    def _run_bound(self, names: list[str], feeds: dict[str, Array], cache: OrtCache) -> list[Array]:
        """The outputs `names`. Cache buffers are inputs and outputs at once: changed in place."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in self._suppress.items():  # which is no input of its own to a binding
            binding.bind_ortvalue_input(name, _on_cpu(array))
        for name in names:
            binding.bind_output(name)
        for name, buffer in cache.buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(f"{name}_out", buffer)
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()[: len(names)]]


def _on_cpu(array: Array) -> ort.OrtValue:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(array)


def fitting_graphs(
    bundle: Bundle, guided: bool, wanted: frozenset[str], cached: bool = False
) -> list[Graph]:
    """The graphs with or without guided rows and a cache that return what is wanted, in order.

    Raises UserError where there is none.
    """
    found = [
        graph
        for graph in bundle.graphs
        if (graph.guided, graph.cached) == (guided, cached) and wanted <= set(graph.outputs)
    ]
    if found:
        return found
    have = "; ".join(
        f"{g.name}{' (guided)' * g.guided}{' (cached)' * g.cached}: {', '.join(g.outputs)}"
        for g in bundle.graphs
    )
    raise UserError(
        f"the bundle has no {'cached ' * cached}{'guided ' * guided}graph with the outputs "
        f"{', '.join(sorted(wanted))}; it has {have}",
        hint="change --sampler, --cache, --temperature or --cfg-scale, or build the bundle for it",
    )


def choose_graph(
    bundle: Bundle, guided: bool, wanted: frozenset[str], cached: bool = False
) -> Graph:
    """The first of `fitting_graphs`."""
    return fitting_graphs(bundle, guided, wanted, cached)[0]


def open_session(
    bundle: Bundle,
    guided: bool,
    wanted: frozenset[str],
    provider: str | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
    cached: bool = False,
    operators: bool = True,
    cuda_graphs: bool = False,
) -> OrtSession:
    """Load the graph of the bundle that can answer; settings left out come from the manifest.

    `cached`: one whose calls may be given a cache. `operators`: use the bundle's own, where it has
    some; else their standard form runs. `cuda_graphs`: record calls that repeat, on CUDA.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UserError(
            "the package onnxruntime is not installed", hint="pip install onnxruntime"
        ) from error
    graph = choose_graph(bundle, guided, wanted, cached)
    path = bundle.folder / graph.path
    if not path.is_file():
        raise UserError(f"{path} is missing", hint="copy the whole bundle, or build it again")
    providers = usable_providers(ort.get_available_providers(), bundle.runtime.providers, provider)
    level = bundle.runtime.accuracy_level if accuracy_level is None else accuracy_level
    ours = operators and bool(bundle.operators)
    library = find_library(bundle.folder, providers[0]) if ours else None

    def load(profile: Path | None = None, record: bool = False) -> ort.InferenceSession:
        options = session_options(level, threads)
        if library is not None and not register(options, library):
            options = session_options(level, threads)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        return load_graph(path, options, providers, record)

    device = DEVICES.get(providers[0])
    session = recordable(load) if cuda_graphs and device is not None else None
    records = session is not None
    session = session or load()
    check_provider(session.get_providers(), providers, path)
    calls = None if device is None else DeviceCalls(session, device, records)
    return OrtSession(session, graph.path, load, calls)
