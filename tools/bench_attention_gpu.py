"""Our attention on GPUs against that of PyTorch and others: time, floors, error, memory.

Run by `tools.bench_kernels`. The floor of attention is the larger of its bytes at the bandwidth and
of its multiply-adds at the rates of the types that both products are made of.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from tools.attention_contestants import errors_of, timed
from tools.attention_data import KINDS
from tools.attention_forms import BASE, FORMS, NAMED, SHAPES, Form, Shape, floor
from tools.goals import Goal, Row, verdicts
from tools.goals import summary as goals_summary
from tools.gpu_machine import Machine
from tools.gpu_timing import as_graphs, contestant, rounds_of

RATIO = "times flash bf16"
TITLED = {shape.title: shape for shape in SHAPES}


def goals(form: Form, shape: Shape) -> list[Goal]:
    """What our kernels are meant to reach on such a shape."""
    found = []
    if form.name == "8 bits" and shape.queries == shape.keys >= 1024:
        found.append(Goal("1.5 times flash in bf16 on canvases of 1024 or more", RATIO, 1.5))
    if form.name == "cache of 8 bits" and shape.queries < shape.keys:
        found.append(Goal("1.8 times flash in bf16 with few queries", RATIO, 1.8))
        found.append(Goal("70 % of the bandwidth with few queries", "% of bandwidth", 70))
    return found


def row_of(
    machine: Machine, shape: Shape, form: Form, seconds: dict[str, list[float]],
    off: dict[str, tuple[float, float]],
) -> dict[str, Any]:  # fmt: skip
    """A row of the table; `off`: relative error and 1 - cosine a kind of data."""
    took = median(seconds[form.name])
    ratios = (
        [a / b for a, b in zip(seconds[BASE], seconds[form.name], strict=True)]
        if BASE in seconds
        else []
    )
    moved, multiplied = floor(machine, form, shape)
    least = max(moved, multiplied)
    found: Row = {
        "shape": shape.title, "kernel": form.name, "µs": 1e6 * took,
        RATIO: median(ratios) if ratios else None,
        "least … most": (min(ratios), max(ratios)) if ratios else None,
        "floor µs": 1e6 * least, "% of floor": 100 * least / took,
        "% of bandwidth": 100 * moved / took,
    }  # fmt: skip
    for kind in KINDS:
        error, angle = off.get(kind, (None, None))
        found |= {f"error, {kind}": error, f"1 - cosine, {kind}": angle}
    return {**found, "goals": verdicts(found, goals(form, shape))}


def summary(table: Sequence[Row]) -> list[dict[str, object]]:
    """How many rows met each goal, and the worst of them."""
    return goals_summary(
        table,
        lambda row: goals(NAMED[row["kernel"]], TITLED[row["shape"]]),
        lambda row: str(row["shape"]),
    )


def memory(kv_heads: int = 32, layers: int = 32) -> list[dict[str, object]]:
    """What caches take a token, in a model of LLaDA-8B's size."""
    base = NAMED[BASE].kept()
    return [
        {
            "kept": form.name if form.cached else "fp16",
            "bytes a token and key head": form.kept(),
            "KiB a token": form.kept() * kv_heads * layers / 1024,
            "of fp16": form.kept() / base,
        }
        for form in FORMS
        if form.cached or form.name == BASE
    ]


def plan(machine: Machine, shapes: Sequence[Shape]) -> list[dict[str, object]]:
    """Floors of our kernels and of bf16, and what meets their goals if flash is at its floor."""
    found: list[dict[str, object]] = []
    for shape in shapes:
        base = max(floor(machine, NAMED[BASE], shape))
        for form in FORMS:
            if form.ours:
                moved, multiplied = floor(machine, form, shape)
                least = max(moved, multiplied)
                wanted = {RATIO: base, "% of bandwidth": 100 * moved}
                limits = [wanted[goal.quantity] / goal.least for goal in goals(form, shape)]
                found.append({
                    "shape": shape.title, "kernel": form.name,
                    "bound by": "bytes" if moved > multiplied else "products",
                    "floor µs": 1e6 * least, "bf16 floor µs": 1e6 * base,
                    "times bf16 at both floors": base / least,
                    "goals met within µs": 1e6 * min(limits) if limits else None,
                })  # fmt: skip
    return found


def predictions(
    table: Sequence[dict[str, Any]], machines: Sequence[Machine]
) -> list[dict[str, object]]:
    """What boards would take at the same share of their own floors, for B 1."""
    found: list[dict[str, object]] = []
    for machine in machines:
        for row in table:
            form, shape = NAMED[row["kernel"]], TITLED[row["shape"]]
            if form.ours and shape.batch == 1:
                least = max(floor(machine, form, shape))
                found.append({
                    "board": machine.name, "shape": shape.title, "kernel": form.name,
                    "floor µs": 1e6 * least, "predicted µs": 1e8 * least / row["% of floor"],
                })  # fmt: skip
    return found


def compare(
    library: ctypes.CDLL, machine: Machine, shape: Shape, rounds: int, calls: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One shape: a row a contestant, and who is absent and why."""
    import torch

    with torch.device("cuda"):
        field = [contestant(form.name, partial(timed, library, form, shape)) for form in FORMS]
        present = {each.name: each.run for each in field if each.run is not None}
        works, plain = as_graphs(present, calls)
        seconds = rounds_of(works, rounds, calls)
        off = {name: errors_of(library, NAMED[name], replace(shape, batch=1)) for name in present}
    table = [row_of(machine, shape, NAMED[name], seconds, off[name]) for name in present]
    return table, {each.name: each.absent for each in field if each.run is None} | plain
