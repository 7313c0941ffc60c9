"""The command of NVIDIA's own tool that makes the same engine, for those who rather use that."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .build_network import Effort
from .onnx_file import OnnxFile, read_onnx
from .shape_ranges import Shapes, shape_ranges

TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}  # by runtime
ALWAYS_TYPED = 11  # major version from which on networks are strongly typed without being told


def trtexec(
    folder: Path,
    plan: Mapping[str, Any],
    runtime: str,
    sm: Sequence[int],
    library: Path | None,
    effort: Effort,
    version: str | None,
) -> str:
    """A line for the shell that builds the engine of a plan below the bundle `folder`.

    `sm`: GPUs to build ahead of time for; `library`: of plugins; `version`: of TensorRT, None:
    not known.
    """
    graph = folder / "graphs" / f"{plan['graph']}.onnx"
    file = read_onnx(graph)
    command = [TOOLS[runtime], f"--onnx={graph}", f"--saveEngine={folder / plan['path']}"]
    command += _settings(file, runtime, version)
    for number, spans in enumerate(plan["profiles"]):
        command += [f"--profile={number}", *_ranges(shape_ranges(file.inputs, spans))]
    if sm:
        command.append(f"--computeCapabilities={','.join(map(str, sm))}")
    if library is not None:  # it registers itself by a function that only this option calls
        command += [f"--dynamicPlugins={library}", "--preview=+aliasedPluginIO1003"]
    return shlex.join([*command, *_limits(effort), "--skipInference"])


def _settings(file: OnnxFile, runtime: str, version: str | None) -> list[str]:
    typed = version is not None and int(version.partition(".")[0]) >= ALWAYS_TYPED
    return [
        *(["--stronglyTyped"] if runtime == "tensorrt" and not typed else []),
        *(["--decomposableAttentions=*"] if "Attention" in file.operators else []),
    ]


def _ranges(ranges: Mapping[str, Shapes]) -> list[str]:
    options = ("--minShapes", "--optShapes", "--maxShapes")
    return [
        f"{option}={','.join(f'{n}:{_by(shapes[which])}' for n, shapes in ranges.items())}"
        for which, option in enumerate(options)
    ]


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _limits(effort: Effort) -> list[str]:
    level, workspace, cache = effort.level, effort.workspace_mib, effort.timing_cache
    return [
        *([f"--builderOptimizationLevel={level}"] if level is not None else []),
        *([f"--memPoolSize=workspace:{workspace}"] if workspace is not None else []),
        *([f"--timingCacheFile={cache}"] if cache is not None else []),
    ]
