"""The part of a build that makes a quantized model: calibrate, then quantize block by block."""

from dataclasses import dataclass

from exporter.allocate import allocate
from exporter.calibrate import calibrate
from exporter.checkpoint import Checkpoint
from exporter.decoding import comparable, describe_model, loop_facts
from exporter.float_session import FloatModel
from exporter.progress import Progress
from exporter.prompts import Prompts, used_vocabulary
from exporter.quantize import Quantized, quantize
from exporter.recipes import Recipe
from exporter.runtime.settings import Settings
from exporter.simulate import turned
from exporter.source import Source
from exporter.work import Work
from passes.base import Team
from passes.calibrate.states import CalibrationSet


@dataclass(frozen=True)
class Made:
    """What running a recipe over a checkpoint gave."""

    recipe: Recipe
    source: Source  # the float model in the basis that was quantized
    calibration: CalibrationSet | None
    quantized: Quantized | None  # None: nothing in the blocks is


def run_recipe(
    checkpoint: Checkpoint,
    digest: str,
    recipe: Recipe,
    settings: Settings,
    canvas: int,
    prompts: Prompts,
    device: str,
    team: Team,
    work: Work,
    progress: Progress,
) -> Made:
    """Run the passes of `recipe`; `digest` is that of the checkpoint, `canvas` its longest one."""
    described = describe_model(checkpoint, digest, used_vocabulary(checkpoint), canvas)
    facts, rollout = loop_facts(described), comparable(settings)
    source, floats = turned(checkpoint, recipe), FloatModel(checkpoint, device)
    model = FloatModel(source, device)
    calibration = calibrate(floats, digest, facts, rollout, prompts, recipe, team, work, progress)
    recipe = allocate(floats, model, digest, calibration, recipe, team, work, progress)
    quantized = quantize(model, digest, calibration, recipe, team, work, progress)
    return Made(recipe, source, calibration, quantized)
