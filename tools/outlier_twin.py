"""Writes a checkpoint that computes the same function with outlier channels, as large models have.

    python -m tools.outlier_twin CHECKPOINT OUT

A norm multiplies channel c by its gain g, and the linears behind it by column c of their weights:
gain g · f and columns ÷ f leave every product as it was, and make the activation in between f
times as large. In each block that is done to a few random channels of both norms. Rounding of the
activations then suffers as it does in models of billions of parameters (Dettmers et al.,
"LLM.int8()", arXiv 2208.07339, section 4), while the float model stays the same.

Folding the norms into the weights, as rotations do, undoes these outliers. `--massive F` adds some
that it does not undo: rows of the MLP's up projection times F, columns of the down projection ÷ F.
That is where diffusion LLMs have their massive outliers (arXiv 2508.14896, section 3.2).

The factor is 32 by default because multiplying or dividing by a power of two changes exponents
only: weights in bf16 keep every bit, and the logits are equal bit by bit. Another factor rounds
each changed weight once.
"""

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import UserError
from exporter.tensor_files import Entry, read_header, write_tensors

READERS = {"attn_norm": ("q", "k", "v"), "mlp_norm": ("gate", "up")}  # norm -> who reads its output
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Scale:
    """What happens to some channels of a tensor: columns, or with `rows` its rows."""

    channels: tuple[int, ...]
    factor: float
    rows: bool = False

    def __call__(self, stored: torch.Tensor) -> torch.Tensor:
        """`stored` with those channels times the factor, computed in fp64, rounded once."""
        scaled = stored.double()
        if self.rows:
            scaled[list(self.channels)] *= self.factor
        else:
            scaled[..., list(self.channels)] *= self.factor
        return scaled.to(stored.dtype)


@dataclass(frozen=True)
class TwinTensors(Mapping[str, torch.Tensor]):
    """The tensors of one weights file by upstream name, each read and scaled when asked for."""

    entries: dict[str, Entry]
    scales: dict[str, list[Scale]]

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self.entries[name].read()
        for scale in self.scales.get(name, ()):
            stored = scale(stored)
        return stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def write_twin(
    source: Path, out: Path, seed: int, channels: int, factor: float, massive: float = 1.0
) -> None:
    """The twin of the checkpoint `source` in the new folder `out`, file by file.

    Raises UserError for a checkpoint that cannot be opened, too many channels, a factor that is not
    a positive number, and an `out` that is there already.
    """
    checkpoint = open_checkpoint(source)
    scales = twin_scales(checkpoint, seed, channels, factor, massive)
    if out.exists():
        raise UserError(f"`{out}` is there already", "Give a folder that is not")
    shutil.copytree(source, out, ignore=weights_and_hidden)
    for file in checkpoint.files:
        write_tensors(out / file.name, TwinTensors(read_header(file), scales))


def twin_scales(
    checkpoint: Checkpoint, seed: int, channels: int, factor: float, massive: float = 1.0
) -> dict[str, list[Scale]]:
    """What changes, by upstream name: `channels` random ones of each norm, and of each MLP."""
    spec, names = checkpoint.spec, checkpoint.family.tensors
    if not 0 < channels <= spec.width:
        raise UserError(f"{channels} channels of {spec.width}", "Give --channels in between")
    if not (0 < factor < float("inf") and 0 < massive < float("inf")):
        raise UserError(
            f"a factor of {factor}, massive {massive}", "Give --factor and --massive above 0"
        )
    scales: dict[str, list[Scale]] = defaultdict(list)
    for block in range(spec.layers):
        for norm, readers in READERS.items():
            rng = random.Random(f"{seed}/{block}/{norm}")
            chosen = tuple(sorted(rng.sample(range(spec.width), channels)))
            scales[names[norm].format(i=block)].append(Scale(chosen, factor))
            for reader in readers:
                scales[names[reader].format(i=block)].append(Scale(chosen, 1 / factor))
        if massive != 1:
            rng = random.Random(f"{seed}/{block}/up")
            hidden = tuple(sorted(rng.sample(range(spec.mlp_width), channels)))
            scales[names["up"].format(i=block)].append(Scale(hidden, massive, rows=True))
            scales[names["down"].format(i=block)].append(Scale(hidden, 1 / massive))
    return scales


def weights_and_hidden(folder: str, names: list[str]) -> list[str]:
    """What is not copied: weights in any format, and files of a training under way."""
    return [name for name in names if name.startswith(".") or name.endswith(WEIGHTS)]


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder to read")],
    out: Annotated[Path, typer.Argument(help="Folder to write")],
    seed: Annotated[int, typer.Option(help="Decides the channels")] = 0,
    channels: Annotated[int, typer.Option(help="Outlier channels of each norm")] = 4,
    factor: Annotated[float, typer.Option(help="How much larger they are")] = 32.0,
    massive: Annotated[float, typer.Option(help="The same inside the MLPs; 1: none")] = 1.0,
) -> None:
    """Write a checkpoint that computes the same function with outlier channels."""
    try:
        write_twin(checkpoint, out, seed, channels, factor, massive)
    except UserError as error:
        typer.echo(f"error: {error}\n\nhint: {error.hint}", err=True)
        raise typer.Exit(1) from None
    typer.echo(out)


if __name__ == "__main__":
    typer.run(main)
