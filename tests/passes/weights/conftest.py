"""A real block for weight passes: a gated two-layer MLP over calibration batches."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from passes.base import Alone, Block, LinearGroup, Team
from passes.numerics import QuantizedLinear


class ToyBlock:
    """`down(relu(gate x) * up x)` with weights (48, 40), (48, 40), (24, 48).

    What a pass replaces is kept in `replaced`, and used from then on.
    """

    name = "block 0"
    team: Team = Alone()
    groups: Sequence[LinearGroup] = (
        LinearGroup("in", ("gate", "up")),
        LinearGroup("out", ("down",)),
    )

    def __init__(self, replaced: dict[str, QuantizedLinear], padding: float) -> None:
        draw = torch.Generator().manual_seed(0)
        self.replaced = replaced
        self.weights = {
            name: torch.randn(shape, generator=draw)
            for name, shape in {"gate": (48, 40), "up": (48, 40), "down": (24, 48)}.items()
        }
        mix = torch.randn(40, 40, generator=draw) * torch.exp(-torch.arange(40) / 10)
        self.batches = [torch.randn(60, 40, generator=draw) @ mix.T for _ in range(3)]
        for batch in self.batches:
            batch[50:] = padding

    def weight(self, linear: str) -> Tensor:
        return self.weights[linear]

    def replace(self, linear: str, quantized: QuantizedLinear) -> None:
        self.replaced[linear] = quantized

    def inputs(self, group: LinearGroup) -> Iterator[tuple[Tensor, Tensor]]:
        w = (torch.arange(60) < 50).float()
        for x in self.batches:
            yield (x if group.name == "in" else self.hidden(x)), w

    def hidden(self, x: Tensor) -> Tensor:
        gate, up = (
            self.replaced[name].dequantize() if name in self.replaced else self.weights[name]
            for name in ("gate", "up")
        )
        return torch.relu(x @ gate.T) * (x @ up.T)


@pytest.fixture
def toy_block() -> Callable[..., Block]:
    """`toy_block(replaced, padding=0.0)`: a fresh block, always with the same weights."""

    def make(replaced: dict[str, QuantizedLinear], padding: float = 0.0) -> Block:
        return ToyBlock(replaced, padding)

    return make
