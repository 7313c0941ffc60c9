"""A small real transformer block that passes can work on: `passes.base.Block` and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from passes.activations.attention import AttentionGrid, probabilities, quantized_attention
from passes.activations.grid import ActivationGrid, fake_quantize
from passes.base import Alone, Heads, LinearGroup, LowRank, Team
from passes.numerics import QuantizedLinear, WeightGrid
from passes.transforms.online import Transform

GRID = WeightGrid(bits=4, group=16)
OUTLIERS = ((3, 9.0), (17, -6.0), (30, 4.0))  # (channel, gain) of both norms
GROUPS = (
    LinearGroup("attention input", ("q", "k", "v"), "attn_norm"),
    LinearGroup("attention output", ("o",), "v"),
    LinearGroup("mlp input", ("gate", "up"), "mlp_norm"),
    LinearGroup("mlp output", ("down",), "up"),
)


@dataclass(frozen=True)
class ToyBatch:
    """Calibration states: hidden (B, S, D), who is no padding (B, S), token weights (B, S)."""

    hidden: Tensor
    valid: Tensor
    weights: Tensor


class ToyBlock:
    """RMSNorm, rotary grouped-query attention, RMSNorm, gated SiLU MLP; residual stream of 40.

    Three batches of two sequences of 30 tokens, 3 and 7 of them left padding: 150 tokens count. In
    what a pass is shown, padding holds the value `padding`. The norms have outlier channels. What a
    pass replaces is kept in `replaced` and used from then on.
    """

    name = "block 0"
    width, head_width, mlp_width = 40, 8, 48

    def __init__(
        self,
        replaced: dict[str, QuantizedLinear] | None = None,
        padding: float = 0.0,
        grid: WeightGrid | None = GRID,
        activation: ActivationGrid | None = None,
        kv_heads: int = 2,
        biases: bool = False,
        weigh: bool = False,
        team: Team | None = None,
        seed: int = 0,
    ) -> None:
        """`weigh`: token weights differ (mean of w^2 over the valid ones 1) instead of all 1.

        A process of a `team` has every size-th batch.
        """
        draw = torch.Generator().manual_seed(seed)
        self.replaced = {} if replaced is None else replaced
        self.padding = padding
        self.groups = tuple(replace(group, grid=grid, activation=activation) for group in GROUPS)
        self.heads = Heads(4, kv_heads, self.head_width)
        self.team: Team = team or Alone()
        self.tensors = draw_tensors(self.heads, self.width, self.mlp_width, biases, draw)
        self.steps: dict[str, list[Transform]] = {group.name: [] for group in GROUPS}
        self.corrections: dict[str, LowRank] = {}
        self.grid: AttentionGrid | None = None
        batches = [draw_batch(self.width, weigh, draw) for _ in range(3)]
        self.batches = batches[self.team.rank :: self.team.size]

    def weight(self, linear: str) -> Tensor:
        return self.tensors[linear]

    def vector(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    def set(self, name: str, tensor: Tensor) -> None:
        assert tensor.shape == self.tensors[name].shape, name
        assert tensor.dtype == torch.float32, name
        self.tensors[name] = tensor

    def replace(self, linear: str, quantized: QuantizedLinear) -> None:
        self.set(linear, quantized.dequantize())
        self.replaced[linear] = quantized

    def correct(self, linear: str, correction: LowRank) -> None:
        self.corrections[linear] = correction

    def transform(self, group: LinearGroup, step: Transform) -> None:
        self.steps[group.name].append(step)

    def quantize_inputs(self, group: LinearGroup, grid: ActivationGrid) -> None:
        self.groups = tuple(
            replace(g, activation=grid) if g.name == group.name else g for g in self.groups
        )

    def attention(self) -> AttentionGrid | None:
        return self.grid

    def quantize_attention(self, grid: AttentionGrid) -> None:
        self.grid = grid

    def inputs(self, group: LinearGroup) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            x = next(x for name, x in self.trace(batch) if name == group.name)
            yield self.shown(x, batch).flatten(0, 1), batch.weights.flatten()

    def tokens(self, group: LinearGroup) -> int:
        mine = sum(int((batch.weights != 0).sum()) for batch in self.batches)
        return sum(self.team.collect(mine))

    def positioned_keys(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            _, x = next(self.trace(batch))
            _, k, _ = self.queries_keys_values(x)
            yield self.shown(k.transpose(1, 2), batch).transpose(1, 2), batch.weights

    def attended(self, grid: AttentionGrid | None) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            _, x = next(self.trace(batch))
            shown = batch.valid[:, None, None, :]
            q, k, v = self.queries_keys_values(x)
            y = quantized_attention(q, k, v, shown, shown, grid or AttentionGrid())
            yield self.shown(y.transpose(1, 2), batch), batch.weights

    def operands(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self.batches:
            _, x = next(self.trace(batch))
            q, k, v = self.queries_keys_values(x)
            v = self.shown(v.transpose(1, 2), batch).transpose(1, 2)
            yield probabilities(q, k, batch.valid[:, None, None, :]), v, batch.weights

    def outputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What leaves the block, (T, D), and token weights (T,)."""
        for batch in self.batches:
            *_, (_, x) = self.trace(batch)
            yield self.shown(x, batch).flatten(0, 1), batch.weights.flatten()

    def shown(self, x: Tensor, batch: ToyBatch) -> Tensor:
        """x (B, S, …) with `padding` where there is no token."""
        valid = batch.valid.unflatten(1, (-1, *(1 for _ in x.shape[2:])))
        return torch.where(valid, x, self.padding)

    def trace(self, batch: ToyBatch) -> Iterator[tuple[str, Tensor]]:
        """(group name, its transformed input (B, S, in)) in order, then ("out", the output)."""
        x = self.turned(0, self.norm("attn_norm", batch.hidden))
        yield GROUPS[0].name, x
        q, k, v = self.queries_keys_values(x)
        grid = self.grid or AttentionGrid()
        shown = batch.valid[:, None, None, :]
        x = quantized_attention(q, k, v, shown, shown, grid)
        x = self.turned(1, x.transpose(1, 2).flatten(2))
        yield GROUPS[1].name, x
        hidden = batch.hidden + self.linear("o", x)
        x = self.turned(2, self.norm("mlp_norm", hidden))
        yield GROUPS[2].name, x
        x = self.turned(3, F.silu(self.linear("gate", x)) * self.linear("up", x))
        yield GROUPS[3].name, x
        yield "out", hidden + self.linear("down", x)

    def turned(self, index: int, x: Tensor) -> Tensor:
        for step in self.steps[GROUPS[index].name]:
            x = step(x)
        return x

    def norm(self, gain: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.tensors[gain]

    def linear(self, name: str, x: Tensor) -> Tensor:
        grid = next(group.activation for group in self.groups if name in group.linears)
        y = F.linear(fake_quantize(x, grid), self.tensors[name], self.tensors.get(f"{name}_bias"))
        if name in self.corrections:
            y = y + x @ self.corrections[name].right.T @ self.corrections[name].left.T
        return y

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, heads, S, K) each, from the transformed input x (B, S, D) of the attention."""
        q, k, v = (
            self.linear(name, x).unflatten(2, (-1, self.head_width)).transpose(1, 2)
            for name in ("q", "k", "v")
        )
        return rotary(q), rotary(k), v


def rotary(x: Tensor) -> Tensor:
    """x (B, H, S, K) turned by its position: channel i with channel i + K/2."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] / 100 ** (torch.arange(half) / half)
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def draw_tensors(
    heads: Heads, width: int, mlp_width: int, biases: bool, draw: torch.Generator
) -> dict[str, Tensor]:
    """Weights with outputs about as large as their inputs, gains with outliers."""
    queries, keys = heads.heads * heads.width, heads.kv_heads * heads.width
    shapes = {
        "q": (queries, width),
        "k": (keys, width),
        "v": (keys, width),
        "o": (width, queries),
        "gate": (mlp_width, width),
        "up": (mlp_width, width),
        "down": (width, mlp_width),
    }
    tensors = {
        name: torch.randn(shape, generator=draw) / shape[1] ** 0.5 for name, shape in shapes.items()
    }
    if biases:
        for name in ("q", "k", "v"):
            tensors[f"{name}_bias"] = torch.randn(len(tensors[name]), generator=draw)
    for name in ("attn_norm", "mlp_norm"):
        tensors[name] = 1 + 0.2 * torch.randn(width, generator=draw)
        for channel, gain in OUTLIERS:
            tensors[name][channel] = gain
    return tensors


def draw_batch(width: int, weigh: bool, draw: torch.Generator) -> ToyBatch:
    """Two sequences of 30 correlated tokens, left padded by 3 and 7."""
    mix = torch.randn(width, width, generator=draw) * torch.exp(-torch.arange(width) / 20)
    hidden = torch.randn(2, 30, width, generator=draw) @ mix.T
    valid = torch.arange(30) >= torch.tensor([[3], [7]])
    weights = valid.float()
    if weigh:
        weights = weights * (0.3 + torch.rand(2, 30, generator=draw))
        weights = weights * (valid.sum() / weights.square().sum()).sqrt()
    return ToyBatch(hidden, valid, weights)


def outputs_of(block: ToyBlock) -> Tensor:
    """What leaves the block for all tokens that are no padding, (T, D)."""
    return torch.cat([x[w != 0] for x, w in block.outputs()])


def rounding_bound(block: ToyBlock) -> float:
    """How far fp32 rounding may move an output when the block computes the same in another way.

    A product of n terms in fp32 is exact for operands that are off by n 2^-24, and no sum here has
    more than n = 48 terms; two operands and the change of basis make three of them. How much the
    block makes of that is measured: what all tensors off by 2^-12, up or down, do to its outputs.
    """
    tensors, before = dict(block.tensors), outputs_of(block)
    draw = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        sign = torch.randint(0, 2, tensor.shape, generator=draw) * 2 - 1
        block.tensors[name] = tensor * (1 + sign * 2**-12)
    amplified = float((outputs_of(block) - before).abs().max()) * 2**12
    block.tensors = tensors
    return 3 * 48 * 2**-24 * amplified
