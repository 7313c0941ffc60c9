"""An engine of an ONNX file, as TensorRT and TensorRT for RTX make it.

Both have the same interface, from TensorRT 10.3 to 11; what came later or is gone is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .build_error import EngineError
from .builder_log import Phases, error_log, monitor
from .bundle_files import write_whole
from .onnx_file import read_onnx
from .shape_ranges import shape_ranges

ALIASED = "ALIASED_PLUGIN_IO_10_03"  # an output of a plugin may have the memory of an input


@dataclass(frozen=True)
class Effort:
    """What the builder may spend."""

    level: int | None = None  # 0 to 5, None: TensorRT's own, which is 3
    workspace_mib: int | None = None  # that a layer may take for itself; None: all of the GPU's
    timing_cache: Path | None = None  # how fast which kernel was, from build to build


def serialized(
    trt: Any,
    graph: Path,
    sm: Sequence[int],
    profiles: Sequence[Mapping[str, Sequence[int]]],
    plugins: bool = False,
    effort: Effort | None = None,
) -> Any:
    """The engine of an ONNX file as a buffer, for GPUs `sm`; none of them: for the one at hand.

    Each of `profiles` gives the least, best and most of every axis that the graph names. The
    network is strongly typed: types of the arithmetic are those of the graph. Raises EngineError
    with what parser or builder refused.
    """
    effort = effort or Effort()
    inputs = read_onnx(graph).inputs
    log = error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):  # from its file, so that weights.bin is found
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise EngineError(f"{graph.name} is not understood: {'; '.join(map(described, errors))}")
    _let_attention_be_composed(trt, network)
    config = builder.create_builder_config()
    for spans in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in shape_ranges(inputs, spans).items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    _set_capabilities(trt, config, sm)
    if plugins and hasattr(trt.PreviewFeature, ALIASED):
        config.set_preview_feature(getattr(trt.PreviewFeature, ALIASED), True)
    _set_effort(trt, config, effort)
    phases = monitor(trt, Phases(graph.stem))
    config.progress_monitor = phases
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reasons = "; ".join(log.errors) or "no reason given"
        raise EngineError(f"no engine of {graph.name}: {reasons}")
    if effort.timing_cache is not None:
        _keep_timing(config, effort.timing_cache)
    return engine


def described(error: Any) -> str:
    """What a parser found, and at which node."""
    node = " ".join(filter(None, [error.node_operator(), error.node_name()]))
    return f"{error.desc()} (node {node})" if node else str(error.desc())


def _strongly_typed(trt: Any) -> int:
    """Flags of a network: the only kind there is from TensorRT 11 on, so the flag may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_capabilities(trt: Any, config: Any, sm: Sequence[int]) -> None:
    if not sm:
        return
    config.num_compute_capabilities = len(sm)
    for index, one in enumerate(sm):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{one}"), index)


def _set_effort(trt: Any, config: Any, effort: Effort) -> None:
    if effort.level is not None:
        config.builder_optimization_level = effort.level
    if effort.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, effort.workspace_mib << 20)
    if effort.timing_cache is not None:
        _use_timing(config, effort.timing_cache)


def _use_timing(config: Any, path: Path) -> None:
    """Begin with the timings of earlier builds, unless they are of another GPU or version."""
    kept = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
    if kept is None or not config.set_timing_cache(kept, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        write_whole(path, cache.serialize())


def _let_attention_be_composed(trt: Any, network: Any) -> None:
    """Let the builder make attention of other layers where it has no fused kernel for it."""
    attention = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # since TensorRT 10.14
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if attention is not None and layer.type == attention:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to cast
            layer.attention.decomposable = True
