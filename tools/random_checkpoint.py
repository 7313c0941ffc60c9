"""Writes a checkpoint of random weights in the layout of LLaDA, for measurements of time and space.

Tensors are drawn one at a time as they are written, so that memory holds one whatever the size.
The deviation is 0.02, and 0.02 / √(2 layers) for what adds to the residual stream (Radford et al.,
"Language models are unsupervised multitask learners", section 2.3): activations stay finite at any
depth. There is no tokenizer: prompts are ids.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from exporter.family_table import LLADA
from exporter.tasks import reference_folder
from exporter.tensor_files import write_tensors
from exporter.work import to_json

DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    layers: int
    width: int
    heads: int
    mlp: int
    vocab: int
    max_length: int = 4096


class Preset(StrEnum):
    TINY = "tiny"
    M300 = "300m"

    @property
    def shape(self) -> Shape:
        if self is Preset.TINY:
            return Shape(layers=2, width=64, heads=2, mlp=128, vocab=128, max_length=256)
        return Shape(layers=16, width=1024, heads=16, mlp=3072, vocab=32768)


@dataclass(frozen=True)
class RandomTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, bf16; each is drawn when it is asked for, always with the same values."""

    shapes: dict[str, tuple[int, ...]]
    deviations: dict[str, float]
    seed: int

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:  # weights of norms
            return torch.ones(shape, dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        drawn = torch.empty(shape).normal_(0.0, self.deviations[name], generator=generator)
        return drawn.bfloat16()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Upstream names and shapes of all tensors, from the input to the output."""
    d, mlp = (shape.width,), (shape.mlp, shape.width)
    block: dict[str, tuple[int, ...]] = {name: d + d for name in ("q", "k", "v", "o")}
    block |= {"attn_norm": d, "mlp_norm": d, "gate": mlp, "up": mlp, "down": mlp[::-1]}
    names, table = LLADA.tensors, (shape.vocab, shape.width)
    blocks = {
        names[name].format(i=index): size
        for index in range(shape.layers)
        for name, size in block.items()
    }
    return {names["embed"]: table, **blocks, names["final_norm"]: d, names["head"]: table}


def deviations(shape: Shape) -> dict[str, float]:
    """Standard deviation of every matrix, by upstream name."""
    writers = [
        LLADA.tensors[name].format(i=i) for i in range(shape.layers) for name in ("o", "down")
    ]
    usual = dict.fromkeys(tensor_shapes(shape), DEVIATION)
    return {**usual, **dict.fromkeys(writers, DEVIATION / (2 * shape.layers) ** 0.5)}


def write_checkpoint(folder: Path, shape: Shape, shards: int = 1, seed: int = 0) -> None:
    """config.json and the weights, in one file or in `shards` of about equal size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(to_json(config(shape)))
    shapes, spread = tensor_shapes(shape), deviations(shape)
    if shards == 1:
        write_tensors(folder / "model.safetensors", RandomTensors(shapes, spread, seed))
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(split(shapes, shards), start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        write_tensors(folder / file, RandomTensors(part, spread, seed))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_bytes(to_json(index))


def split(shapes: dict[str, tuple[int, ...]], shards: int) -> list[dict[str, tuple[int, ...]]]:
    """Tensors in order, cut where the weights before a tensor pass the next share of the whole."""
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shards)]
    sizes = {name: torch.Size(size).numel() for name, size in shapes.items()}
    total, before = sum(sizes.values()), 0
    for name, size in shapes.items():
        parts[before * shards // total][name] = size
        before += sizes[name]
    return parts


def config(shape: Shape) -> dict[str, object]:
    """Upstream's config.json: the reference model's with these sizes."""
    shipped: dict[str, object] = json.loads((reference_folder() / "config.json").read_text())
    return shipped | {
        "d_model": shape.width,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "mlp_hidden_size": shape.mlp,
        "mlp_ratio": shape.mlp // shape.width,
        "vocab_size": shape.vocab,
        "embedding_size": shape.vocab,
        "max_sequence_length": shape.max_length,
    }


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write")],
    preset: Preset = Preset.M300,
    layers: Annotated[int | None, typer.Option(min=1, help="In place of the preset's")] = None,
    shards: Annotated[int, typer.Option(min=1, help="Weight files")] = 1,
    seed: int = 0,
) -> None:
    """Write a checkpoint of random weights; its number of weights goes to stdout."""
    shape = preset.shape if layers is None else replace(preset.shape, layers=layers)
    write_checkpoint(out, shape, shards, seed)
    typer.echo(sum(torch.Size(size).numel() for size in tensor_shapes(shape).values()))


if __name__ == "__main__":
    typer.run(main)
