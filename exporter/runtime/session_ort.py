"""`Session` over ONNX Runtime."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .bundle import Bundle, Graph
from .errors import UserError
from .operators import find_library
from .session import Array, Bools, Cache, Ints, Reductions
from .threads import fewer_cores

if TYPE_CHECKING:
    import onnxruntime as ort


TYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}
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

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
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
        if self._capacity is not None:  # nobody sees what lies behind the canvas
            key_mask = np.pad(key_mask, ((0, 0), (0, self._capacity - key_mask.shape[1])))
        feeds: dict[str, Array] = {
            "input_ids": ids,
            "start": np.asarray([start], np.int64),
            "causal": np.asarray([causal], np.bool_),
            "key_mask": key_mask,
            "shadow": np.empty((len(ids), 0), np.int64) if shadow is None else shadow,
            # reductions of no position at all are more than ONNX Runtime can do
            "window": window.astype(np.int64) if len(window) else np.asarray([start], np.int64),
            "special_bias": special_bias,
            "cfg_scale": np.asarray([cfg_scale or 0.0], np.float32),
            "temperature": np.asarray([temperature or 1.0], np.float32),
        }
        feeds = {n: np.ascontiguousarray(a) for n, a in feeds.items() if n in self._inputs}
        names = sorted(wanted)
        if cache is None and self._kept:
            cache = self.new_cache(*key_mask.shape)
        if cache is None:
            feeds |= self._suppress
            return dict(zip(names, self._session.run(names, feeds), strict=True))
        assert isinstance(cache, OrtCache)
        if len(window):
            return dict(zip(names, self._run_bound(names, feeds, cache), strict=True))
        self._run_bound([], feeds, cache)
        shape = (len(ids) // (1 if cfg_scale is None else 2), 0)
        return {name: np.empty(shape) for name in names}

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
        """See `session.Session`."""
        import onnxruntime as ort

        assert self._kept, "the graph was not opened for calls with a cache"
        device = DEVICES.get(self._session.get_providers()[0], "cpu")
        buffers = {}
        for value in self._kept:
            sizes = {"rows": rows, "C": length}
            empty = np.zeros([sizes.get(size, size) for size in value.shape], TYPES[value.type])
            buffers[value.name] = ort.OrtValue.ortvalue_from_numpy(empty, device, 0)
        return OrtCache(rows, length, buffers)

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


def choose_graph(
    bundle: Bundle, guided: bool, wanted: frozenset[str], cached: bool = False
) -> Graph:
    """The first graph with or without guided rows and a cache that returns what is wanted."""
    for graph in bundle.graphs:
        if (graph.guided, graph.cached) == (guided, cached) and wanted <= set(graph.outputs):
            return graph
    have = "; ".join(
        f"{g.name}{' (guided)' * g.guided}{' (cached)' * g.cached}: {', '.join(g.outputs)}"
        for g in bundle.graphs
    )
    raise UserError(
        f"the bundle has no {'cached ' * cached}{'guided ' * guided}graph with the outputs "
        f"{', '.join(sorted(wanted))}; it has {have}",
        hint="change --sampler, --cache, --temperature or --cfg-scale, or build the bundle for it",
    )


def open_session(
    bundle: Bundle,
    guided: bool,
    wanted: frozenset[str],
    provider: str | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
    cached: bool = False,
    operators: bool = True,
) -> OrtSession:
    """Load the graph of the bundle that can answer; settings left out come from the manifest.

    `cached`: one whose calls may be given a cache. `operators`: use the bundle's own, where it has
    some; else their standard form runs.
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
    providers = _providers(ort.get_available_providers(), bundle.runtime.providers, provider)
    level = bundle.runtime.accuracy_level if accuracy_level is None else accuracy_level
    library = find_library(bundle.folder) if operators and bundle.operators else None
    options = _options(level, threads)
    if library is not None and not _register(options, library):
        options = _options(level, threads)
    session = _load(path, options, providers)
    _check_provider(session.get_providers(), providers, path)
    return OrtSession(session)


def _load(path: Path, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
    import onnxruntime as ort

    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises types of its own, by version
        if "DQX_KERNEL" not in str(error):
            raise
        raise UserError(
            f"DQX_KERNEL is {os.environ.get('DQX_KERNEL')!r}, no kernel of this machine",
            hint="unset DQX_KERNEL: it is for tests",
        ) from error


def _options(accuracy_level: int, threads: int | None) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    options.enable_cpu_mem_arena = False  # no slower here, and freed memory goes back
    # ONNX Runtime quantizes activations to 8 bits unless told otherwise
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    count = fewer_cores() if threads is None else threads
    if count is not None:
        options.intra_op_num_threads = count
    return options


def _register(options: ort.SessionOptions, library: Path) -> bool:
    """Whether the library could be loaded; if not, says why on stderr."""
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # onnxruntime raises types of its own, by version
        print(f"{library} cannot be loaded ({error}); standard operators run, slower",
              file=sys.stderr)  # fmt: skip
        return False
    return True


def _providers(available: list[str], default: tuple[str, ...], asked: str | None) -> list[str]:
    """The providers to ask for; `asked` is a name such as cuda or CUDAExecutionProvider."""
    wish = list(default) if asked is None else [asked]
    names = {n.lower().removesuffix("executionprovider"): n for n in available}
    found = [names.get(w.lower().removesuffix("executionprovider")) for w in wish]
    if found and found[0] is not None:
        return [name for name in found if name is not None]
    raise UserError(
        f"this onnxruntime has no provider {' or '.join(wish)}; it has {', '.join(available)}",
        hint="use --provider with one of these, or install onnxruntime-gpu for CUDA",
    )


def _check_provider(got: list[str], asked: list[str], path: Path) -> None:
    """ONNX Runtime falls back to another provider without an error."""
    if got[:1] != asked[:1]:
        raise UserError(
            f"onnxruntime could not load {path.name} on {asked[0]} and took {got[0]}",
            hint=f"check the driver and libraries of {asked[0]}, or use --provider {got[0]}",
        )
