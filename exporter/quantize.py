"""The quantization stage: block by block, each seeing what the quantized blocks before it produce.

Memory holds one block, its Hessians and the calibration activations, twice in a block with experts.
Every finished block is kept on disk; a build that was killed replays the finished blocks and goes
on with the next.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.calibrate import batch_states
from exporter.calibrated_block import Batch, CalibratedBlock
from exporter.float_session import FloatModel
from exporter.layer import Layer
from exporter.linear_groups import (
    block_groups,
    expert,
)
from exporter.model import (
    make_context,
    run_block,
)
from exporter.progress import Progress
from exporter.quantized_block import QuantizedBlock, load, save
from exporter.recipes import Recipe
from exporter.work import Work
from passes.base import LEAST_TOKENS, Team, run
from passes.calibrate.states import CalibrationSet

log = logging.getLogger(__name__)


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
                _run_passes(quantized, index, block, recipe, calibration is not None)
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
    groups = tuple(recipe.on_grids(index, group) for group in block_groups(model.spec, index))
    return CalibratedBlock(
        model.spec, f"block {index}", tensors, batches, team, groups, recipe.attention
    )


def _run_passes(
    quantized: Quantized, index: int, block: CalibratedBlock, recipe: Recipe, calibrated: bool
) -> None:
    records = run(recipe.blocks, block, check_block)
    check_done(block)
    if calibrated and block.spec.has_experts(index):
        records[-1].stats.update(count_tokens(block))
    if block.team.rank != 0:
        return
    # seconds differ from run to run, and bundles must not
    facts = [{"step": record.step, "stats": record.stats} for record in records]
    quantized.save(index, block.result().to("cpu"), facts)


def count_tokens(block: CalibratedBlock) -> dict[str, float]:
    """How many calibration tokens the experts saw; warns of those that saw too few."""
    assert block.spec.experts is not None
    counts = [block.tokens(expert(number)[0]) for number in range(block.spec.experts.count)]
    unseen = [number for number, count in enumerate(counts) if count < LEAST_TOKENS]
    if unseen and block.team.rank == 0:
        log.warning(
            "%s: %d of %d experts saw fewer than %d calibration tokens and are rounded to nearest: "
            "%s. More samples help", block.name, len(unseen), len(counts), LEAST_TOKENS,
            ", ".join(map(str, unseen)),
        )  # fmt: skip
    return {
        "expert_tokens_least": min(counts),
        "expert_tokens_mean": sum(counts) / len(counts),
        "expert_tokens_most": max(counts),
        "experts_unseen": len(unseen),
    }


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
