"""A checkpoint with its residual stream in a rotated basis: the same function, flatter activations.

The gains of the norms are folded into the linears behind them, so a norm commutes with a rotation
(QuaRot, arXiv 2404.00456, section 4; SliceGPT, arXiv 2401.15024, section 3). Tensors are turned as
they are read, so memory stays bounded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from exporter.families import Spec, block_shapes
from exporter.linear_groups import role
from exporter.source import Source
from passes.transforms.quarot import ResidualRotation

READS = {"q": "attn_norm", "k": "attn_norm", "v": "attn_norm", "gate": "mlp_norm", "up": "mlp_norm",
         "router": "mlp_norm"}  # fmt: skip
WRITES = ("o", "down")  # linears whose output is added to the residual stream


@dataclass(frozen=True)
class Rotated:
    """`Source` of a model whose residual stream is turned by `rotation`."""

    inner: Source
    rotation: ResidualRotation

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
        if norm := READS.get(role(name)):
            return self.rotation.rotate_input(tensor, self.inner.tensor(norm, block, device))
        if role(name) in WRITES:
            return self.rotation.rotate_output(tensor)
        if name in ("attn_norm", "mlp_norm", "final_norm"):
            return torch.ones_like(tensor)  # folded
        return self._outer(name, tensor) if name in ("embed", "head") else tensor

    def rows(self, name: str, count: int) -> Iterator[torch.Tensor]:
        for part in self.inner.rows(name, count):
            yield self._outer(name, part)

    def gather(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        return self._outer(name, self.inner.gather(name, ids))

    def block(self, index: int, device: str = "cpu") -> dict[str, torch.Tensor]:
        return {name: self.tensor(name, index, device) for name in block_shapes(self.spec, index)}

    def _outer(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        if name == "head":
            norm = self.inner.tensor("final_norm", device=str(rows.device))
            return self.rotation.rotate_input(rows, norm)
        return self.rotation.rotate_rows(rows)
