"""A block while passes work on it: its tensors, its grids, and what calibration states feed it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from exporter.experts import Routing, route
from exporter.families import Spec
from exporter.layer import Layer
from exporter.linear_groups import (
    ATTENTION,
    SHARED_EXPERT,
    expert,
    expert_number,
    role,
)
from exporter.mlp import finish, trace_gated
from exporter.model import (
    GROUPS,
    Context,
    attend,
    positioned_keys,
    rms_norm,
    run_block,
    trace_attention,
    trace_block,
    weighted_values,
)
from exporter.quantized_block import QuantizedBlock
from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid
from passes.base import Heads, LinearGroup, LowRank, Team
from passes.numerics import QuantizedLinear
from passes.transforms.online import Transform


@dataclass
class Batch:
    """Calibration states of one length."""

    hidden: torch.Tensor  # (B, S, D) what enters the block
    context: Context
    weights: torch.Tensor  # (B · S,) of the tokens, 0 at padding


@dataclass(frozen=True, eq=False)
class Routed:
    """What enters the experts of a block, for one batch."""

    x: torch.Tensor  # (B · S, D) normed hidden states
    routing: Routing


@dataclass
class CalibratedBlock:
    """A block as passes see it (`passes.base.Block`)."""

    spec: Spec
    name: str
    tensors: dict[str, torch.Tensor]
    batches: Sequence[Batch]
    team: Team
    groups: Sequence[LinearGroup] = GROUPS
    grid: AttentionGrid | None = None  # of the attention operands, once they are rounded
    replaced: dict[str, QuantizedLinear] = field(default_factory=dict)
    transforms: dict[str, tuple[Transform, ...]] = field(default_factory=dict)
    activations: dict[str, ActivationGrid] = field(default_factory=dict)
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    routed: list[Routed] | None = None  # of each batch, until something before the experts changes

    def __post_init__(self) -> None:
        wanted = {group.name: group.activation for group in self.groups}
        self.activations |= {name: grid for name, grid in wanted.items() if grid is not None}

    @property
    def heads(self) -> Heads:
        return Heads(self.spec.heads, self.spec.kv_heads, self.spec.head_dim)

    @property
    def layer(self) -> Layer:
        """The block as it runs now; it follows what the passes change.

        The inputs of a group are rounded from the time on that its weights are: what transforms
        and scales are found with is the float block.
        """
        done = {
            group.name: self.activations[group.name]
            for group in self.groups
            if group.name in self.activations and self._is_done(group)
        }
        attention = self.grid if self._is_done(self.groups[0]) else None
        return Layer(self.tensors, self.transforms, done, self.low_rank, attention)

    def _is_done(self, group: LinearGroup) -> bool:
        return group.grid is None or all(linear in self.replaced for linear in group.linears)

    def weight(self, linear: str) -> torch.Tensor:
        return self.tensors[linear]

    def vector(self, name: str) -> torch.Tensor | None:
        return self.tensors.get(name)

    def set(self, name: str, tensor: torch.Tensor) -> None:
        assert name not in self.replaced, f"{self.name}: {name} is quantized already"
        assert tensor.shape == self.tensors[name].shape
        self._changed(name)
        self.tensors[name] = tensor

    def replace(self, linear: str, quantized: QuantizedLinear) -> None:
        self._changed(linear)
        self.tensors[linear] = quantized.dequantize()
        self.replaced[linear] = quantized

    def correct(self, linear: str, correction: LowRank) -> None:
        self._changed(linear)
        self.low_rank[linear] = correction

    def transform(self, group: LinearGroup, step: Transform) -> None:
        self._changed(*group.linears)
        self.transforms[group.name] = (*self.transforms.get(group.name, ()), step)

    def quantize_inputs(self, group: LinearGroup, grid: ActivationGrid) -> None:
        self._changed(*group.linears)
        self.activations[group.name] = grid

    def attention(self) -> AttentionGrid | None:
        return self.grid

    def quantize_attention(self, grid: AttentionGrid) -> None:
        self._changed("attention")
        self.grid = grid

    def _changed(self, *names: str) -> None:
        """What enters the experts is out of date, unless it is they that changed."""
        if any(role(name) not in ("gate", "up", "down") for name in names):
            self.routed = None

    def inputs(self, group: LinearGroup) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if "router" in self.tensors and group.name not in [g.name for g in ATTENTION]:
            yield from self._expert_inputs(group)
            return
        for batch in self.batches:
            yield self._trace(batch, group.name).flatten(0, 1), batch.weights

    def _expert_inputs(self, group: LinearGroup) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Those of a group of an expert, of its own tokens alone. Attention does not run again."""
        number, layer = expert_number(group), self.layer
        groups = SHARED_EXPERT if number is None else expert(number)
        for batch, routed in zip(self.batches, self._routed(), strict=True):
            x, weights = routed.x, batch.weights
            if number is not None:
                rows, _ = routed.routing.tokens(number)
                x, weights = x[rows], weights[rows]
            yield (
                next(x for name, x in trace_gated(layer, groups, x) if name == group.name),
                weights,
            )

    def _routed(self) -> list[Routed]:
        """What enters the experts, of each batch: kept until something before them changes."""
        if self.routed is None:
            layer = self.layer
            self.routed = [self._route(layer, batch) for batch in self.batches]
        return self.routed

    def _route(self, layer: Layer, batch: Batch) -> Routed:
        assert self.spec.experts is not None
        hidden = finish(trace_attention(self.spec, layer, batch.hidden, batch.context))
        x = rms_norm(hidden, self.tensors["mlp_norm"], self.spec.norm_eps).flatten(0, 1)
        return Routed(x, route(self.spec.experts, self.tensors, x))

    def tokens(self, group: LinearGroup) -> int:
        number = expert_number(group)
        if number is None:
            mine = sum(int((batch.weights != 0).sum()) for batch in self.batches)
        else:
            pairs = zip(self.batches, self._routed(), strict=True)
            mine = sum(int((b.weights[r.routing.tokens(number)[0]] != 0).sum()) for b, r in pairs)
        return sum(self.team.collect(mine))

    def positioned_keys(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            x = self._trace(batch, ATTENTION[0].name)
            k = positioned_keys(self.spec, self.layer, x, batch.context)
            yield k, batch.weights.view(batch.hidden.shape[:2])

    def attended(self, grid: AttentionGrid | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        layer = replace(self.layer, attention=grid)
        for batch in self.batches:
            y = attend(self.spec, layer, self._trace(batch, ATTENTION[0].name), batch.context)
            shape = (*batch.hidden.shape[:2], self.spec.heads, self.spec.head_dim)
            yield y.view(shape), batch.weights.view(shape[:2])

    def operands(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            x = self._trace(batch, ATTENTION[0].name)
            p, v = weighted_values(self.spec, self.layer, x, batch.context)
            yield p, v, batch.weights.view(batch.hidden.shape[:2])

    def outputs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            yield self._trace(batch, "out").flatten(0, 1), batch.weights

    def _trace(self, batch: Batch, name: str) -> torch.Tensor:
        """What enters the group `name`, or leaves the block as "out"."""
        steps = trace_block(self.spec, self.layer, batch.hidden, batch.context)
        return next(x for found, x in steps if found == name)

    def advance(self) -> None:
        """Replace the hidden states by what this block makes of them."""
        for batch in self.batches:
            batch.hidden = run_block(self.spec, self.layer, batch.hidden, batch.context)

    def result(self) -> QuantizedBlock:
        """What the passes made of the block."""
        floats = {n: tensor for n, tensor in self.tensors.items() if n not in self.replaced}
        return QuantizedBlock(
            floats, self.replaced, self.transforms, self.activations, self.low_rank, self.grid
        )
