"""The quantization stage: block by block, each seeing what the quantized blocks before it produce.

Memory holds one block, its Hessians and the calibration activations. Every finished block is kept
on disk; a build that was killed replays the finished blocks and goes on with the next.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from exporter.calibrate import batch_states
from exporter.families import Spec
from exporter.float_session import FloatModel
from exporter.layer import Layer
from exporter.model import GROUPS, Context, make_context, run_block, trace_block, weighted_values
from exporter.progress import Progress
from exporter.quantized_block import QuantizedBlock, load, save
from exporter.recipes import Recipe
from exporter.work import Work
from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid
from passes.base import Heads, LinearGroup, LowRank, Team, run
from passes.calibrate.states import CalibrationSet
from passes.numerics import QuantizedLinear
from passes.transforms.online import Transform


@dataclass(frozen=True)
class Quantized:
    """All quantized blocks of a model, on disk."""

    folder: Path
    layers: int

    def block(self, index: int) -> QuantizedBlock:
        """One block as the passes left it."""
        return load(self._file(index))

    def passes(self, index: int) -> list[dict[str, Any]]:
        """What ran over one block: step and stats, in order."""
        facts: list[dict[str, Any]]
        facts = json.loads(self._file(index).with_suffix(".json").read_text())["passes"]
        return facts

    def count(self) -> int:
        """How many blocks, from the first on, are there already."""
        return len(list(self.folder.glob("block-*.json")))

    def save(self, index: int, block: QuantizedBlock, passes: list[dict[str, Any]]) -> None:
        """Keep one block; the small file comes last and marks it as done."""
        save(self._file(index), block, {"passes": passes})

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index:04}"


@dataclass
class Batch:
    """Calibration states of one length."""

    hidden: torch.Tensor  # (B, S, D) what enters the block
    context: Context
    weights: torch.Tensor  # (B · S,) of the tokens, 0 at padding


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
        self.tensors[name] = tensor

    def replace(self, linear: str, quantized: QuantizedLinear) -> None:
        self.tensors[linear] = quantized.dequantize()
        self.replaced[linear] = quantized

    def correct(self, linear: str, correction: LowRank) -> None:
        self.low_rank[linear] = correction

    def transform(self, group: LinearGroup, step: Transform) -> None:
        self.transforms[group.name] = (*self.transforms.get(group.name, ()), step)

    def quantize_inputs(self, group: LinearGroup, grid: ActivationGrid) -> None:
        self.activations[group.name] = grid

    def attention(self) -> AttentionGrid | None:
        return self.grid

    def quantize_attention(self, grid: AttentionGrid) -> None:
        self.grid = grid

    def inputs(self, group: LinearGroup) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            yield self._trace(batch, group.name).flatten(0, 1), batch.weights

    def operands(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            x = self._trace(batch, GROUPS[0].name)
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


@torch.no_grad()
def quantize(
    model: FloatModel,
    digest_of_weights: str,
    calibration: CalibrationSet | None,
    recipe: Recipe,
    team: Team,
    work: Work,
    progress: Progress,
) -> Quantized | None:
    """Run the recipe's passes over every block of `model`; None when it has none.

    `model` is seen through the recipe's rotation, if there is one.
    """
    if not recipe.blocks:
        return None
    layers = model.spec.layers
    seen = None if calibration is None else (calibration.provenance, recipe.draw, recipe.weigh)
    made = (recipe.blocks, recipe.weights, recipe.activation, recipe.attention, recipe.rotation)
    stage = work.stage("quantize", digest_of_weights, seen, made, sorted(recipe.high))
    quantized = Quantized(stage, layers)
    finished = min(team.collect(quantized.count()))
    batches = make_batches(model, calibration, team) if finished < layers else []
    with progress.stage("quantize", layers) as step:
        for index in range(layers if finished < layers else 0):
            if index < finished:
                layer = quantized.block(index).to(model.device).layer()
                _advance(model, layer, batches)
            else:
                block = open_block(model, index, batches, recipe, team)
                _run_passes(quantized, index, block, recipe)
                if index < layers - 1:
                    block.advance()
            step()
    team.collect(None)  # nobody reads before the first process has written all
    return quantized


def open_block(
    model: FloatModel, index: int, batches: Sequence[Batch], recipe: Recipe, team: Team
) -> CalibratedBlock:
    """One block of the float model, with the grids that the recipe wants it on."""
    tensors = model.checkpoint.block(index, model.device)
    groups = tuple(recipe.on_grids(index, group) for group in GROUPS)
    return CalibratedBlock(
        model.spec, f"block {index}", tensors, batches, team, groups, recipe.attention
    )


def _run_passes(quantized: Quantized, index: int, block: CalibratedBlock, recipe: Recipe) -> None:
    records = run(recipe.blocks, block, check_block)
    check_done(block)
    if block.team.rank != 0:
        return
    # seconds differ from run to run, and bundles must not
    facts = [{"step": record.step, "stats": record.stats} for record in records]
    quantized.save(index, block.result().to("cpu"), facts)


def check_block(block: CalibratedBlock) -> None:
    """Invariants after each pass: every tensor is finite, every code matrix of its old shape."""
    for name, tensor in block.tensors.items():
        assert bool(torch.isfinite(tensor).all()), f"{block.name}: {name} is not finite"
    for name, linear in block.replaced.items():
        assert linear.codes.shape == block.tensors[name].shape, f"{block.name}: {name}"


def check_done(block: CalibratedBlock) -> None:
    """Invariants after the last pass: everything that has a grid is on it."""
    for group in block.groups:
        for name in group.linears if group.grid is not None else ():
            assert name in block.replaced, f"{block.name}: {name} was not quantized"
        activation = block.activations.get(group.name)
        assert activation is None or activation.ready, f"{block.name}: {group.name} has no scale"


def _advance(model: FloatModel, layer: Layer, batches: Sequence[Batch]) -> None:
    for batch in batches:
        batch.hidden = run_block(model.spec, layer, batch.hidden, batch.context)


def make_batches(model: FloatModel, calibration: CalibrationSet | None, team: Team) -> list[Batch]:
    """This process's share of the calibration states, embedded, grouped by length."""
    batches: list[Batch] = []
    if calibration is None:
        return batches
    for group in batch_states(calibration.states)[team.rank :: team.size]:
        states = [calibration.states[i] for i in group]
        valid = torch.stack([state.valid for state in states]).to(model.device)
        weights = torch.stack([calibration.weights[i] for i in group]).flatten().to(model.device)
        hidden = model.embed(torch.stack([state.ids for state in states]))
        batches.append(Batch(hidden, make_context(model.spec, valid), weights))
    return batches
