"""How ONNX Runtime is set up: options, providers, the library of operators."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .threads import fewer_cores

if TYPE_CHECKING:
    import onnxruntime as ort


def load_graph(
    path: Path, options: ort.SessionOptions, providers: list[str], record: bool = False
) -> ort.InferenceSession:
    """Load an ONNX file; `record` with the first provider's option for CUDA graphs."""
    import onnxruntime as ort

    try:
        first = (providers[0], {"enable_cuda_graph": "1"}) if record else providers[0]
        return ort.InferenceSession(str(path), options, providers=[first, *providers[1:]])
    except Exception as error:  # onnxruntime raises types of its own, by version
        if "DQX_KERNEL" not in str(error):
            raise
        raise UserError(
            f"DQX_KERNEL is {os.environ.get('DQX_KERNEL')!r}, no kernel of this machine",
            hint="unset DQX_KERNEL: it is for tests",
        ) from error


def session_options(accuracy_level: int, threads: int | None) -> ort.SessionOptions:
    """How graphs are loaded; `accuracy_level` of MatMulNBits, `threads` of the CPU."""
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


def register(options: ort.SessionOptions, library: Path) -> bool:
    """Whether the library could be loaded; if not, says why on stderr."""
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # onnxruntime raises types of its own, by version
        print(f"{library} cannot be loaded ({error}); standard operators run, slower",
              file=sys.stderr)  # fmt: skip
        return False
    return True


def usable_providers(
    available: list[str], default: tuple[str, ...], asked: str | None
) -> list[str]:
    """The providers to ask for; `asked` is a name such as cuda or CUDAExecutionProvider."""
    wish = list(default) if asked is None else [asked]
    names = {short_name(n): n for n in available}
    found = [names.get(short_name(w)) for w in wish]
    if found and found[0] is not None:
        return [name for name in found if name is not None]
    raise UserError(
        f"this onnxruntime has no provider {''.join(wish[:1])}; it has {', '.join(available)}",
        hint="use --provider with one of these, such as cpu, or install onnxruntime-gpu",
    )


def short_name(provider: str) -> str:
    """`cuda` of CUDAExecutionProvider, or of any way to write it."""
    return provider.lower().removesuffix("executionprovider")


def check_provider(got: list[str], asked: list[str], path: Path) -> None:
    """Raises UserError: ONNX Runtime falls back to another provider without an error."""
    if got[:1] != asked[:1]:
        raise UserError(
            f"onnxruntime could not load {path.name} on {asked[0]} and took {got[0]}",
            hint=f"check the driver and libraries of {asked[0]}, or use --provider {got[0]}",
        )


def recordable(load: Callable[..., ort.InferenceSession]) -> ort.InferenceSession | None:
    """What `load` gives with `record`; None, with the reason on stderr, where that is refused.

    ONNX Runtime records graphs alone whose every operator runs on CUDA.
    """
    try:
        return load(record=True)
    except Exception as error:  # onnxruntime raises types of its own, by version
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"no CUDA graphs ({reason}); every call is launched on its own", file=sys.stderr)
        return None
