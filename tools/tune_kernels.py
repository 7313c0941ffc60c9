"""Chooses how linears are divided on each GPU, and writes ort_ops/linear_w4a8/tiles.h.

    python -m tools.tune_kernels              by the model of tools/tile_model.py, for all GPUs
    python -m tools.tune_kernels --measure    on the GPU of this machine: its lines are replaced
    python -m tools.tune_kernels --list       the candidates

For each form of linear and each range of rows every division takes its turn on linears of real
models; the one with the least geometric mean of its times wins. Without --measure lines that were
measured are kept.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from math import ceil, exp, log
from pathlib import Path
from typing import Annotated

import typer

from ort_ops.build import ROOT
from tools.bench_linears_gpu import LINEARS
from tools.tile_model import COLUMNS, GPUS, Gpu, Kernel, Shape, seconds

TILES = ROOT / "linear_w4a8" / "tiles.h"
BUCKETS = {16: (1, 8, 16), 32: (32,), 64: (64,), 128: (128,), 256: (256,), 2**31 - 1: (512, 1024)}
BLOCKS = (2, 1, 3, 4)  # of a multiprocessor; of equal ones the first
MOST_ROWS_IN_PARTS, MOST_PARTS, LEAST_PART = 128, 8, 256  # as plan.cu has them
MOST_PARTIAL_BYTES = 16 << 20
NOT_MEASURED = 3  # exit code


@dataclass(frozen=True)
class Form:
    """What a rule is for: weights and the kind of their scales."""

    weight_bits: int
    int4: bool
    channel: bool
    gated: bool

    def kernels(self, wgmma: bool = False) -> list[Kernel]:
        """The instances that there are, with the registers of a thread (SM 87, of wgmma SM 90)."""
        return self._of_warps() + (self._of_groups() if wgmma and self.channel else [])

    def _of_groups(self) -> list[Kernel]:
        used = {16: 95, 32: 126, 64: 191} if self.gated else {16: 64, 32: 79, 64: 128, 128: 226}
        return [
            Kernel(self.weight_bits, "wgmma", rows, self.gated, registers)
            for rows, registers in used.items()
        ]

    def _of_warps(self) -> list[Kernel]:
        path = "mma4" if self.int4 else "mma8"
        used = {16: 128, 32: 168, 64: 226}
        rows = [16, 32] if self.channel or self.int4 else [32]
        if self.gated:
            rows = [16, 32] if self.channel and not self.int4 else [16]
        elif self.channel and not self.int4:
            rows = [16, 32, 64]
        more = 2 if self.gated else 1
        return [
            Kernel(self.weight_bits, path, each, self.gated, min(255, used[each] * more))  # type: ignore[arg-type]  # one of two
            for each in rows
        ]


FORMS = tuple(
    Form(weight_bits, int4, channel, gated)
    for weight_bits, int4 in ((4, False), (8, False), (4, True))
    for channel in (True, False)
    for gated in (False, True)
)


@dataclass(frozen=True)
class Choice:
    """A division: the kernel, and the blocks that parts of the depth are to make."""

    kernel: Kernel
    blocks: int

    def parts(self, gpu: Gpu, shape: Shape) -> int:
        """As plan.cu finds them."""
        if shape.rows > MOST_ROWS_IN_PARTS:
            return 1
        across = ceil(shape.width / COLUMNS[self.kernel.weight_bits])
        wanted = ceil(
            self.blocks * gpu.multiprocessors / (ceil(shape.rows / self.kernel.rows) * across)
        )
        room = MOST_PARTIAL_BYTES // (4 * shape.rows * shape.width * (1 + self.kernel.gated))
        return max(1, min(wanted, shape.depth // LEAST_PART, MOST_PARTS, room))


Cost = Callable[[Form, Choice, Shape], float]  # seconds


def choose(form: Form, rows: tuple[int, ...], cost: Cost, wgmma: bool) -> Choice:
    """The best division for a range of rows; of equal ones the first."""
    shapes = [Shape(many, *linear) for linear in LINEARS.values() for many in rows]
    kernels = form.kernels(wgmma)
    choices = [Choice(kernel, blocks) for kernel in kernels for blocks in BLOCKS]

    def mean(choice: Choice) -> float:
        return exp(sum(log(cost(form, choice, shape)) for shape in shapes) / len(shapes))

    return min(choices, key=lambda choice: round(mean(choice), 12))


def lines(capability: int, cost: Cost) -> Iterator[str]:
    """The rules of a GPU; ranges of rows with the same division are one."""
    for form in FORMS:
        if form.int4 and not GPUS[capability].int4:
            continue
        found = [
            (most, choose(form, rows, cost, GPUS[capability].wgmma))
            for most, rows in BUCKETS.items()
        ]
        for place, (most, choice) in enumerate(found):
            if place + 1 < len(found) and found[place + 1][1] == choice:
                continue
            flags = ", ".join(str(flag).lower() for flag in astuple(form)[1:])
            yield (
                f"    {{{capability}, {form.weight_bits}, {flags}, {most}, "
                f"Path::{choice.kernel.path}, {choice.kernel.rows}, {choice.blocks}}},"
            )


def modelled(gpu: Gpu) -> Cost:
    """Seconds by the model."""
    return lambda _, choice, shape: seconds(gpu, choice.kernel, shape, choice.parts(gpu, shape))


def section(capability: int, how: str, cost: Cost) -> str:
    """All of the file that belongs to one GPU."""
    return f"    // SM {capability}: {how}\n" + "\n".join(lines(capability, cost)) + "\n"


def sections(text: str) -> dict[int, str]:
    """Of a file that was written before."""
    found = re.finditer(r"    // SM (\d+): .*\n(?:    \{.*\n)+", text)
    return {int(each[1]): each[0] for each in found}


def render(parts: dict[int, str]) -> str:
    """The whole file."""
    return (
        "// How linears are divided on each GPU. Written by tools/tune_kernels.py.\n"
        "#pragma once\n\n#include \"tile_rule.h\"\n\nnamespace dqx {\n\n"
        "constexpr TileRule TILE_RULES[] = {\n"
        + "".join(parts[capability] for capability in sorted(parts))
        + "};\n\n}  // namespace dqx\n"
    )  # fmt: skip


def main(
    measure: Annotated[bool, typer.Option(help="On this machine's GPU.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of a measurement.")] = 5,
    show: Annotated[bool, typer.Option("--list", help="Print the candidates alone.")] = False,
    to: Annotated[Path, typer.Option(help="The file to write.")] = TILES,
) -> None:
    """Write the table; say what of it was measured."""
    if show:
        for form in FORMS:
            rows = [f"{kernel.path} {kernel.rows}" for kernel in form.kernels(wgmma=True)]
            typer.echo(f"{form}: {', '.join(rows)}; blocks of a multiprocessor {BLOCKS}")
        return
    kept = sections(to.read_text()) if to.is_file() else {}
    kept = {sm: text for sm, text in kept.items() if ": model" not in text.splitlines()[0]}
    found = {sm: kept.get(sm) or section(sm, f"model of {gpu.name}", modelled(gpu))
             for sm, gpu in GPUS.items()}  # fmt: skip
    if measure:
        from tools.measured_tiles import measured

        try:
            sm, name, cost = measured(rounds)
        except RuntimeError as error:
            typer.echo(f"not measured: {error}", err=True)
            raise typer.Exit(NOT_MEASURED) from None
        today = datetime.now(UTC).date()
        found[sm] = section(sm, f"measured on {name}, {today}", cost)
    to.write_text(render(found))
    typer.echo(f"{to}: " + ", ".join(text.splitlines()[0].strip(" /") for text in found.values()))


if __name__ == "__main__":
    typer.run(main)
