"""Where a model's float tensors come from: a checkpoint, or one seen through a change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from exporter.families import Spec


class Source(Protocol):
    """Tensors in fp32, by our names: `embed`, `final_norm`, `head`, in blocks `q`, `gate` …"""

    @property
    def spec(self) -> Spec: ...

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        ...

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        ...

    def tensor(self, name: str, block: int | None = None, device: str = "cpu") -> torch.Tensor:
        """One tensor."""
        ...

    def rows(self, name: str, count: int) -> Iterator[torch.Tensor]:
        """The rows of `embed` or `head`, `count` at a time."""
        ...

    def gather(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` (any shape) of `embed` or `head`."""
        ...

    def block(self, index: int, device: str = "cpu") -> dict[str, torch.Tensor]:
        """All tensors of one block."""
        ...
