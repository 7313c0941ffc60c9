"""Boards and runtimes as data: one TOML file each, read into one frozen class.

Code asks a target for its properties (`8 in target.weight_bits`), never for its name, so that a new
board is a new file and nothing else.
"""

import difflib
import tomllib
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict

Format = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4"]
Operator = Literal[
    "linear", "linear-w4", "linear-w4a16", "attention", "kv-update", "cached-attention"
]


class Target(BaseModel):
    """What a bundle is built for. Every statement holds for all GPUs listed in `sm`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # the file's name without .toml
    title: str  # one line for people
    runtime: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    providers: tuple[str, ...] = ()  # execution providers of ONNX Runtime, in order of preference
    compute: Literal["fp32", "fp16"]  # type of activations between quantized operations
    sm: tuple[int, ...] | None = None  # CUDA compute capabilities × 10 (87 is Orin); None: no GPU
    memory_gib: float | None = (
        None  # None: that of the machine at hand. Jetson: CPU and GPU share it
    )
    reserved_gib: float = 0.0  # of it that system and firmware keep for themselves
    bandwidth_gb_s: float | None = None  # of that memory, 1e9 bytes a second; None: as above
    # 1e12 operations a second, a multiply-add being two, of its tensor cores on dense matrices
    tops: dict[Literal["fp16", "int8"], float] | None = None
    power_mode: str | None = None  # of nvpmodel, in which it has that bandwidth and these rates
    weight_bits: tuple[int, ...]  # integer widths with a fast matmul, best first
    activations: tuple[Format, ...]  # what a matmul may take as its activations, best first
    formats: tuple[Format, ...]  # everything that the runtime stores or multiplies there
    tensorrt: str | None = None  # the version the facts hold for, and later ones of that major
    cuda: str | None = None  # likewise
    opset: int  # highest ONNX opset that the runtime reads
    # of our own that have kernels there; linear-w4: those with 4-bit weights and integer inputs;
    # linear-w4a16: beside these, those with 4-bit weights and float inputs
    operators: tuple[Operator, ...] = ()
    plugins: tuple[Literal["ipluginv3", "qdp"], ...] = ()  # TensorRT plugin mechanisms, best first
    fixed_capacity: bool = False  # caches have a length that stands in the graph
    cache_bits: tuple[int, ...] = (16, 8, 4)  # that keys and values may be kept in; 16: floats
    embed_bits: tuple[int, ...] = (16, 8)  # that rows of the embedding may be kept in
    uneven_groups: bool = True  # the last group of a weight's inputs may be shorter than others
    widens_int4: bool = True  # 4-bit weights may become 8-bit ones to meet 8-bit inputs
    native_attention: bool  # the ONNX `Attention` operator runs without a plugin
    engine_built: Literal["none", "ahead-of-time", "on-device"]
    default_recipe: str
    build: str  # what `dqexport build` makes, in a sentence or two


def names() -> list[str]:
    """All target names, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load(name: str) -> Target:
    """The target called `name`; ValueError with the close matches when there is none."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        guess = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown target {name!r}: {guess}known are {', '.join(known)}")
    text = resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return Target.model_validate({"name": name, **tomllib.loads(text)})
