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
from exporter.model import GROUPS, Context, make_context, run_block, trace_block
from exporter.progress import Progress
from exporter.recipes import Recipe
from exporter.tensor_files import read_header, write_atomically, write_tensors
from exporter.work import Work, to_json
from passes.base import LinearGroup, Team, run
from passes.calibrate.states import CalibrationSet
from passes.numerics import QuantizedLinear


@dataclass(frozen=True)
class Quantized:
    """The quantized linears of all blocks, on disk."""

    folder: Path
    layers: int

    def block(self, index: int) -> dict[str, QuantizedLinear]:
        """The quantized linears of one block, by our names."""
        entries = read_header(self.folder / f"block-{index:04}.safetensors")
        linears: dict[str, QuantizedLinear] = {}
        for name, (bits, group) in self.facts(index).linears.items():
            codes, scales = entries[f"{name}.codes"].read(), entries[f"{name}.scales"].read()
            linears[name] = QuantizedLinear(codes, scales.float(), bits, group)
        return linears

    def facts(self, index: int) -> "BlockFacts":
        """How one block was quantized."""
        return BlockFacts(**json.loads((self.folder / f"block-{index:04}.json").read_text()))

    def count(self) -> int:
        """How many blocks, from the first on, are there already."""
        return len(list(self.folder.glob("block-*.json")))

    def save(
        self, index: int, linears: dict[str, QuantizedLinear], passes: list[dict[str, Any]]
    ) -> None:
        """Keep one block; the small file comes last and marks it as done."""
        tensors = {f"{name}.codes": q.codes for name, q in linears.items()}
        tensors |= {f"{name}.scales": q.scales.half() for name, q in linears.items()}
        write_tensors(self.folder / f"block-{index:04}.safetensors", tensors)
        shapes = {name: [q.bits, q.group] for name, q in linears.items()}
        facts = to_json({"linears": shapes, "passes": passes})
        write_atomically(self.folder / f"block-{index:04}.json", [facts])


@dataclass(frozen=True)
class BlockFacts:
    """What is kept of a quantized block beside its codes."""

    linears: dict[str, tuple[int, int]]  # name -> (bits, group)
    passes: list[dict[str, Any]]  # step, stats: as they ran


@dataclass
class Batch:
    """Calibration states of one length."""

    hidden: torch.Tensor  # (B, S, D) what enters the block
    context: Context
    weights: torch.Tensor  # (B · S,) of the tokens, 0 at padding


@dataclass
class CalibratedBlock:
    """A block as weight passes see it (`passes.base.Block`)."""

    spec: Spec
    name: str
    weights: dict[str, torch.Tensor]
    batches: Sequence[Batch]
    team: Team
    groups: Sequence[LinearGroup] = GROUPS
    replaced: dict[str, QuantizedLinear] = field(default_factory=dict)

    def weight(self, linear: str) -> torch.Tensor:
        return self.weights[linear]

    def replace(self, linear: str, quantized: QuantizedLinear) -> None:
        self.weights[linear] = quantized.dequantize()
        self.replaced[linear] = quantized

    def inputs(self, group: LinearGroup) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            for name, x in trace_block(self.spec, self.weights, batch.hidden, batch.context):
                if name == group.name:
                    yield x.flatten(0, 1), batch.weights
                    break

    def advance(self) -> None:
        """Replace the hidden states by what this block makes of them."""
        for batch in self.batches:
            batch.hidden = run_block(self.spec, self.weights, batch.hidden, batch.context)


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
    """Run the recipe's passes over every block; None when it has none."""
    if not recipe.blocks:
        return None
    checkpoint, layers = model.checkpoint, model.spec.layers
    seen = None if calibration is None else (calibration.provenance, recipe.draw, recipe.weigh)
    quantized = Quantized(work.stage("quantize", digest_of_weights, seen, recipe.blocks), layers)
    finished = min(team.collect(quantized.count()))
    batches = _batches(model, calibration, team) if finished < layers else []
    with progress.stage("quantize", layers) as step:
        for index in range(layers if finished < layers else 0):
            weights = checkpoint.block(index, model.device)
            block = CalibratedBlock(model.spec, f"block {index}", weights, batches, team)
            if index < finished:
                for name, linear in quantized.block(index).items():
                    block.replace(name, _to(linear, model.device))
            else:
                _run_passes(quantized, index, block, recipe)
            if index < layers - 1:
                block.advance()
            step()
    return quantized


def _run_passes(quantized: Quantized, index: int, block: CalibratedBlock, recipe: Recipe) -> None:
    records = run(recipe.blocks, block, check_block)
    if block.team.rank != 0:
        return
    linears = {name: _to(q, "cpu") for name, q in block.replaced.items()}
    # seconds differ from run to run, and bundles must not
    facts = [{"step": record.step, "stats": record.stats} for record in records]
    quantized.save(index, linears, facts)


def check_block(block: CalibratedBlock) -> None:
    """Invariants after each pass: every linear is quantized, finite and of its old shape."""
    for name in (linear for group in block.groups for linear in group.linears):
        assert name in block.replaced, f"{block.name}: {name} was not quantized"
        assert block.replaced[name].codes.shape == block.weights[name].shape
        assert bool(torch.isfinite(block.weights[name]).all()), f"{block.name}: {name}"


def _batches(model: FloatModel, calibration: CalibrationSet | None, team: Team) -> list[Batch]:
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


def _to(linear: QuantizedLinear, device: str) -> QuantizedLinear:
    return QuantizedLinear(
        linear.codes.to(device), linear.scales.to(device), linear.bits, linear.group
    )
