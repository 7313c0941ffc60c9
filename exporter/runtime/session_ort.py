"""`Session` over ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .bundle import Bundle, Graph
from .errors import UserError
from .session import Array, Bools, Ints, Reductions

if TYPE_CHECKING:
    import onnxruntime as ort


class OrtSession:
    """One graph of a bundle, loaded. Only the inputs it has and the outputs asked for are bound."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = {i.name for i in session.get_inputs()}

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
    ) -> Reductions:
        """See `session.Session`."""
        feeds: dict[str, Array] = {
            "input_ids": ids,
            "key_mask": key_mask,
            "window": window.astype(np.int64),
            "special_bias": special_bias,
            "cfg_scale": np.asarray([cfg_scale or 0.0], np.float32),
            "temperature": np.asarray([temperature or 1.0], np.float32),
        }
        names = sorted(wanted)
        found = self._session.run(names, {k: v for k, v in feeds.items() if k in self._inputs})
        return dict(zip(names, found, strict=True))


def choose_graph(bundle: Bundle, guided: bool, wanted: frozenset[str]) -> Graph:
    """The first graph that takes guided rows, or not, and returns what is wanted."""
    for graph in bundle.graphs:
        if graph.guided == guided and wanted <= set(graph.outputs):
            return graph
    have = "; ".join(
        f"{g.name}{' (guided)' * g.guided}: {', '.join(g.outputs)}" for g in bundle.graphs
    )
    raise UserError(
        f"the bundle has no {'guided ' * guided}graph with the outputs {', '.join(sorted(wanted))};"
        f" it has {have}",
        hint="change --sampler, --temperature or --cfg-scale, or build the bundle for it",
    )


def open_session(
    bundle: Bundle,
    guided: bool,
    wanted: frozenset[str],
    provider: str | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
) -> OrtSession:
    """Load the graph of the bundle that can answer; settings left out come from the manifest."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise UserError(
            "the package onnxruntime is not installed", hint="pip install onnxruntime"
        ) from error
    graph = choose_graph(bundle, guided, wanted)
    path = bundle.folder / graph.path
    if not path.is_file():
        raise UserError(f"{path} is missing", hint="copy the whole bundle, or build it again")
    providers = _providers(ort.get_available_providers(), bundle.runtime.providers, provider)
    level = bundle.runtime.accuracy_level if accuracy_level is None else accuracy_level
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    options.enable_cpu_mem_arena = False  # no slower here, and freed memory goes back
    # ONNX Runtime quantizes activations to 8 bits unless told otherwise
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=providers)
    _check_provider(session.get_providers(), providers, path)
    return OrtSession(session)


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
