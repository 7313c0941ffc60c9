"""What the decoding bench lets compete: the emitted loop over ONNX Runtime, and plain torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from exporter.checkpoint import Checkpoint
from exporter.families import Spec
from exporter.runtime.bundle import read_bundle
from exporter.runtime.candidates import wanted
from exporter.runtime.loop import decode
from exporter.runtime.session import Array, Bools, Cache, Ints, Reductions, Session
from exporter.runtime.session_ort import open_session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from tools import torch_loop

NOT_READ = ("embed", "cos", "sin")  # a forward reads a few rows of these


@dataclass(frozen=True)
class Case:
    """What is decoded."""

    name: str
    checkpoint: Checkpoint
    prompt: list[int]
    settings: Settings
    calls: int  # that are run, from the first

    @property
    def steps(self) -> int:
        return self.settings.steps or self.settings.gen_length

    @property
    def tokens_a_step(self) -> float:
        return self.settings.gen_length / self.steps


@dataclass
class Timed:
    """A `Session` that adds up the seconds spent in it."""

    session: Session
    seconds: float = 0.0

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
        begun = time.perf_counter()
        found = self.session.forward(
            ids,
            key_mask,
            window,
            special_bias,
            cfg_scale,
            temperature,
            wanted,
            cache,
            start,
            causal,
            shadow,
        )
        self.seconds += time.perf_counter() - begun
        return found

    def new_cache(self, rows: int, length: int) -> Cache:
        return self.session.new_cache(rows, length)


@dataclass(frozen=True)
class Contestant:
    """A way to decode a case. `run` decodes once and returns the seconds spent in the runtime."""

    name: str
    run: Callable[[], float]
    arithmetic: str  # a field of Peaks
    weight_bytes: int  # read in a forward
    head_rows: float  # positions whose logits a forward computes, on average
    steps: list[float] = field(default_factory=list)  # seconds a step, one a round
    hosts: list[float] = field(default_factory=list)  # of these outside of the runtime


def emitted(case: Case, bundle: Path, level: int, threads: int, own: bool = True) -> Contestant:
    """The loop of a bundle, with operators of our own or, at an accuracy level, without."""
    opened, settings = read_bundle(bundle), case.settings
    own = own and bool(opened.operators)
    session = open_session(opened, False, wanted(settings), None, threads, level, operators=own)
    timed = Timed(session)
    rows: list[int] = []

    def run() -> float:
        canvas, start, mask = make_canvas([case.prompt], settings.gen_length, opened.model)
        before = timed.seconds
        steps = decode(timed, opened.model, settings, canvas, start, mask)
        rows.extend(len(step.window) for step in islice(steps, case.calls))
        return timed.seconds - before

    run()
    name, low = bundle.name, own or level == 4
    how = ", own operators" if own else f", level {level}" if name != "fp32" else ""
    label = f"emitted loop, {name}{how}"
    size = read_bytes(bundle / opened.graphs[0].path)
    return Contestant(label, run, "int8" if low else "fp32", size, float(np.mean(rows)))


def plain(case: Case, dtype: torch.dtype, name: str) -> Contestant:
    """The torch loop, which computes the logits of the whole canvas."""
    model, settings = torch_loop.load(case.checkpoint, dtype), case.settings

    def run() -> float:
        start = time.perf_counter()
        torch_loop.decode(
            model, case.prompt, settings.gen_length, settings.block_length, case.steps, case.calls
        )
        return time.perf_counter() - start

    run()
    size = (case.checkpoint.parameters - model.embed.numel()) * dtype.itemsize
    rows = len(case.prompt) + settings.gen_length
    return Contestant(f"torch loop, {name}", run, name, size, rows)


def read_bytes(graph: Path) -> int:
    """Bytes of the weights that a forward of a graph reads."""
    tensors = ir.load(graph).graph.initializers
    values = (v.const_value for name, v in tensors.items() if not name.startswith(NOT_READ))
    return sum(value.nbytes for value in values if value is not None)


def multiply_adds(spec: Spec, length: int, head_rows: float) -> float:
    """Of one forward over `length` positions: linears, attention, head."""
    inner = spec.heads * spec.head_dim
    outer = spec.kv_heads * spec.head_dim
    linears = spec.width * (2 * inner + 2 * outer + 3 * spec.mlp_width)
    attention = 2 * inner * length
    return spec.layers * length * (linears + attention) + head_rows * spec.width * spec.vocab_size
