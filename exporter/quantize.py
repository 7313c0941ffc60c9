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
from exporter.checkpoint import Checkpoint
from exporter.families import Spec
from exporter.float_session import FloatModel
from exporter.model import GROUPS, Context, make_context, run_block, trace_block
from exporter.progress import Progress
from exporter.recipes import Recipe
from exporter.tensor_files import read_header, write_atomically, write_tensors
from exporter.work import Work, to_json
from passes.base import LinearGroup, run
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

    def done(self, index: int) -> bool:
        return (self.folder / f"block-{index:04}.json").is_file()

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
    work: Work,
    progress: Progress,
) -> Quantized | None:
    """Run the recipe's passes over every block; None when it has none."""
    if not recipe.blocks:
        return None
    checkpoint, layers = model.checkpoint, model.spec.layers
    seen = None if calibration is None else (calibration.provenance, recipe.draw, recipe.weigh)
    quantized = Quantized(work.stage("quantize", digest_of_weights, seen, recipe.blocks), layers)
    if all(quantized.done(index) for index in range(layers)):
        return quantized
    batches = _batches(model, calibration)
    with progress.stage("quantize", layers) as step:
        for index in range(layers):
            block = _open_block(checkpoint, index, batches, model.device)
            if quantized.done(index):
                for name, linear in quantized.block(index).items():
                    block.replace(name, _to(linear, model.device))
            else:
                _run_passes(quantized, index, block, recipe)
            if not quantized.done(layers - 1):
                block.advance()
            step()
    return quantized


def _run_passes(quantized: Quantized, index: int, block: CalibratedBlock, recipe: Recipe) -> None:
    records = run(recipe.blocks, block, check_block)
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


def _open_block(
    checkpoint: Checkpoint, index: int, batches: Sequence[Batch], device: str
) -> CalibratedBlock:
    weights = {name: tensor.to(device) for name, tensor in checkpoint.block(index).items()}
    return CalibratedBlock(checkpoint.spec, f"block {index}", weights, batches)


def _batches(model: FloatModel, calibration: CalibrationSet | None) -> list[Batch]:
    """Embedded calibration states, grouped by length."""
    batches: list[Batch] = []
    for group in [] if calibration is None else batch_states(calibration.states):
        assert calibration is not None
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
