"""CUDA kernels of linears and attention against cuBLAS, PyTorch's attention, and the GPU.

    python -m tools.bench_kernels --plan jetson-orin          floors and goals, without a GPU
    python -m tools.bench_kernels --compile 90 kernels.so     where there is nvcc, without a GPU
    python -m tools.bench_kernels --library kernels.so        on the GPU, with PyTorch

Contestants take turns on linears of real models, and on whole canvases and blocks of attention;
each call takes the next of several copies of its operands, so that no weight lies in a cache. Times
are medians over rounds of graphs of several calls, by events of the device. Floors are made of
rates that were measured in this run (a copy of 1 GiB; torch's `_int_mm` and bf16 product of 8192
cubed). For other boards that floor, at their bandwidth and rates, divided by the share of it that
was reached here: a prediction and no measurement.

Results go to a file as they come. A run with the same file goes on where the last one ended, be it
killed or out of its time.
"""

import ctypes
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ort_ops.build_cuda import CudaBuildError, prebuild
from tools import bench_attention_gpu as attention
from tools import bench_linears_gpu as linears
from tools.attention_forms import SHAPES
from tools.gpu_launchers import loaded
from tools.gpu_machine import Machine, board, boards, measure_machine
from tools.tables import markdown

NOT_MEASURED = 3  # exit code
Kind = Literal["linears", "attention"]


@dataclass
class Results:
    """What the file holds: rows of both tables, who was absent and why."""

    machine: Machine
    linears: list[dict[str, Any]] = field(default_factory=list)
    attention: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, place: Path) -> "Results":
        found = json.loads(place.read_text(encoding="utf-8"))
        return cls(Machine(**found.pop("machine")), **found)

    def write(self, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")
        fresh.replace(place)

    def add(self, kind: Kind, rows: list[dict[str, Any]], absent: dict[str, str]) -> None:
        getattr(self, kind).extend(rows)
        self.absent |= absent


@dataclass(frozen=True)
class Piece:
    """One linear at one number of rows, or one shape of attention."""

    kind: Kind
    title: str
    work: Callable[[], tuple[list[dict[str, Any]], dict[str, str]]]

    def done(self, results: Results) -> bool:
        return any(_title(self.kind, row) == self.title for row in getattr(results, self.kind))


def _title(kind: Kind, row: dict[str, Any]) -> str:
    return f"{row['linear']}, {row['rows']} rows" if kind == "linears" else str(row["shape"])


def pieces(
    library: ctypes.CDLL, machine: Machine, only: Kind | None, names: list[str], rows: list[int],
    keys: list[int], rounds: int, calls: int,
) -> list[Piece]:  # fmt: skip
    """All that is to be measured, linears and attention by turns."""
    products = [
        Piece(
            "linears", _title("linears", {"linear": name, "rows": many}),
            partial(linears.compare, library, machine, name, many, rounds, calls),
        )
        for name in names for many in rows if only != "attention"
    ]  # fmt: skip
    shapes = [
        Piece(
            "attention", shape.title,
            partial(attention.compare, library, machine, shape, rounds, calls),
        )
        for shape in SHAPES if shape.keys in keys and only != "linears"
    ]  # fmt: skip
    return [piece for pair in zip_longest(products, shapes) for piece in pair if piece is not None]


def measure(
    todo: list[Piece], results: Results, place: Path, seconds: float, clock: Callable[[], float]
) -> list[str]:
    """Works through the pieces that are not done until the time is up; titles of what is left."""
    end = clock() + seconds
    left = [piece for piece in todo if not piece.done(results)]
    while left and clock() < end:
        results.add(left[0].kind, *left[0].work())
        results.write(place)
        del left[0]
    return [piece.title for piece in left]


def report(results: Results) -> str:
    """All tables in Markdown."""
    machine = results.machine
    text = [
        f"{machine.name}: {machine.bandwidth / 1e9:.4g} GB/s, {machine.int8 / 1e12:.4g} T "
        f"multiply-adds/s of 8 bits, {machine.halves / 1e12:.4g} T of halves"
    ]
    if results.linears:
        text += ["## Linears", markdown(results.linears)]
        text += ["Goals:", markdown(linears.summary(results.linears))]
    if results.attention:
        text += ["## Attention", markdown(results.attention)]
        text += ["Goals:", markdown(attention.summary(results.attention))]
        text += ["Memory of caches:", markdown(attention.memory())]
    predicted = linears.predictions(results.linears, boards())
    if predicted:
        text += ["Linears of W4A8 on boards, predicted, not measured:", markdown(predicted)]
    predicted = attention.predictions(results.attention, boards())
    if predicted:
        text += ["Attention on boards, predicted, not measured:", markdown(predicted)]
    if results.absent:
        lines = [f"* {name}: {why}" for name, why in sorted(results.absent.items())]
        text += ["Absent, or timed otherwise:", "\n".join(lines)]
    return "\n\n".join(text)


def plan(machine: Machine, names: list[str], rows: list[int], keys: list[int]) -> str:
    """What will be measured, with its floors on a machine: by calculation."""
    shapes = [shape for shape in SHAPES if shape.keys in keys]
    text = [
        f"Floors on {machine.name} by calculation: {machine.bandwidth / 1e9:.4g} GB/s, "
        f"{machine.int8 / 1e12:.4g} T multiply-adds/s of 8 bits, {machine.halves / 1e12:.4g} T "
        "of halves. Nothing here is measured.",
        "## Linears", markdown(linears.plan(machine, names, rows)),
        "## Attention", markdown(attention.plan(machine, shapes)),
        "Memory of caches:", markdown(attention.memory()),
    ]  # fmt: skip
    return "\n\n".join(text)


def opened(library: Path | None) -> ctypes.CDLL:
    """The launchers: as they are given, or compiled for this GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return loaded(library or built(10 * major + minor))


def built(sm: int) -> Path:
    """The library for GPUs of `sm`, once for each state of the kernels."""
    try:
        return prebuild(sm)
    except CudaBuildError as error:
        elsewhere = f"elsewhere: --compile {sm} kernels.so, then --library kernels.so here"
        raise typer.BadParameter(f"{error}\n{elsewhere}") from error


def begun(place: Path) -> Results:
    """What an earlier run left, if it was on this GPU; else nothing but this GPU's rates."""
    import torch

    if not place.is_file():
        return Results(measure_machine())
    found = Results.read(place)
    if found.machine.name != torch.cuda.get_device_name():
        raise typer.BadParameter(f"{place} is of another GPU: {found.machine.name}")
    return found


def main(
    library: Annotated[Path | None, typer.Option(help="Made by --compile.")] = None,
    compile_for: Annotated[
        tuple[int, Path] | None,
        typer.Option("--compile", help="SM and the file to make, for another machine."),
    ] = None,
    planned: Annotated[
        str | None, typer.Option("--plan", help="A target, or h100: floors alone.")
    ] = None,
    only: Annotated[Kind | None, typer.Option(help="Default: both.")] = None,
    linear: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    rows: Annotated[list[int] | None, typer.Option(help="Of linears; repeatable.")] = None,
    keys: Annotated[list[int] | None, typer.Option(help="Of attention; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    calls: Annotated[int, typer.Option(min=1, help="A round.")] = 20,
    seconds: Annotated[float, typer.Option(help="No new piece is begun after that.")] = 480,
    out: Annotated[Path, typer.Option(help="JSON, with what is done.")] = Path("bench/gpu.json"),
) -> None:
    """Print microseconds, ratios, shares of floors, errors, and goals met."""
    if compile_for is not None:
        sm, place = compile_for
        shutil.copyfile(built(sm), place)
        return
    names, many = linear or list(linears.LINEARS), rows or list(linears.ROWS)
    lengths = keys or sorted({shape.keys for shape in SHAPES})
    if planned is not None:
        try:
            typer.echo(plan(board(planned), names, many, lengths))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        return
    import torch

    if not torch.cuda.is_available():
        typer.echo("not measured: this machine has no GPU that PyTorch can use", err=True)
        raise typer.Exit(NOT_MEASURED)
    launchers, results = opened(library), begun(out)
    todo = pieces(launchers, results.machine, only, names, many, lengths, rounds, calls)
    left = measure(todo, results, out, seconds, time.monotonic)
    typer.echo(report(results))
    if left:
        typer.echo(f"\nnot measured yet: {len(left)} of {len(todo)}; run it again", err=True)


if __name__ == "__main__":
    typer.run(main)
