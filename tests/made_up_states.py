"""Recipes run over states that nobody decoded: quick, where it is not quality that is judged."""

from pathlib import Path

import torch

from exporter.checkpoint import Checkpoint
from exporter.float_session import FloatModel
from exporter.progress import Progress
from exporter.quantize import Quantized, quantize
from exporter.recipes import Recipe
from exporter.simulate import turned
from exporter.work import open_work
from passes.base import Alone
from passes.calibrate.states import CalibrationSet, State

LENGTH = 12


def random_ids(checkpoint: Checkpoint, masked: float, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, checkpoint.spec.vocab_size - 20, (LENGTH,), generator=draw)
    ids[torch.rand(LENGTH, generator=draw) < masked] = checkpoint.spec.mask_id
    return ids


def calibration(checkpoint: Checkpoint) -> CalibrationSet:
    """States of all mask ratios, some with padding, of random confidence."""
    states = []
    for seed in range(8):
        ids, draw = random_ids(checkpoint, seed / 8, seed), torch.Generator().manual_seed(seed)
        valid = torch.arange(LENGTH) >= seed % 3
        score = torch.rand(LENGTH, generator=draw)
        is_mask = ids == checkpoint.spec.mask_id
        states.append(State(ids, is_mask, valid, seed, 0, 0, seed / 8, score, score))
    return CalibrationSet(states, "made up", {})


def run_passes(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> Quantized | None:
    model = FloatModel(turned(checkpoint, recipe))
    states = calibration(checkpoint)
    with open_work(folder) as work:
        return quantize(model, "digest", states, recipe, Alone(), work, Progress())
