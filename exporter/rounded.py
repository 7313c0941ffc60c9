"""Embedding, head and the norm before it as a bundle stores them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from exporter.families import Spec
from exporter.recipes import Recipe
from exporter.source import Source
from passes.numerics import QuantizedLinear, WeightGrid
from passes.weights.rtn import round_to_nearest


def round_head(rows: torch.Tensor, recipe: Recipe) -> QuantizedLinear:
    """Rows (N, D) of a quantized head."""
    return round_to_nearest(rows, WeightGrid(recipe.head_bits, recipe.head_group))


def round_embedding(rows: torch.Tensor) -> QuantizedLinear:
    """Rows (N, D) of an 8-bit embedding: a scale a row."""
    return round_to_nearest(rows, WeightGrid(8))


@dataclass(frozen=True)
class Rounded:
    """`Source` whose embedding, last norm and head have the values that the recipe's bundle holds.

    The blocks are those of `inner`: what becomes of them stands in `Quantized`.
    """

    inner: Source
    recipe: Recipe

    @property
    def spec(self) -> Spec:
        return self.inner.spec

    @property
    def folder(self) -> Path:
        return self.inner.folder

    @property
    def parameters(self) -> int:
        return self.inner.parameters

    def tensor(self, name: str, block: int | None = None, device: str = "cpu") -> torch.Tensor:
        tensor = self.inner.tensor(name, block, device)
        return self._outer(name, tensor) if block is None else tensor

    def rows(self, name: str, count: int) -> Iterator[torch.Tensor]:
        for part in self.inner.rows(name, count):
            yield self._outer(name, part)

    def gather(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        return self._outer(name, self.inner.gather(name, ids))

    def block(self, index: int, device: str = "cpu") -> dict[str, torch.Tensor]:
        return self.inner.block(index, device)

    def _outer(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        if name == "head" and self.recipe.head_bits < 16:
            return round_head(rows.flatten(0, -2), self.recipe).dequantize().view(rows.shape)
        if name == "embed" and self.recipe.embed_bits == 8:
            return round_embedding(rows.flatten(0, -2)).dequantize().view(rows.shape)
        kind = self.recipe.storage if name == "embed" else self.recipe.compute
        return rows.half().float() if kind == "fp16" else rows
