"""A checkpoint as a recipe would deploy it, simulated in torch, as a subject of evaluation."""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.checkpoint import Checkpoint
from exporter.decoding import DecodeOptions, default_settings, longest_canvas
from exporter.evaluation.raw_logits import of_model
from exporter.evaluation.subject import Subject, float_model, model_subject, room
from exporter.float_session import FloatModel, FloatSession
from exporter.preflight import check_lengths
from exporter.progress import Progress
from exporter.prompts import read_prompts
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.run_recipe import run_recipe
from exporter.runtime.session import Session
from exporter.simulate import simulated
from exporter.team import device_of
from exporter.work import open_work
from passes.base import Alone

HELD_OUT = 16  # prompts that `build` keeps for its gate: calibration then sees what it sees there


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint is quantized with, and on what."""

    recipe: str
    quant: QuantOptions
    calib: Path | None = None  # prompts; None: the checkpoint's own, else the reference tasks
    calib_prompts: int = 128


def simulated_subject(
    checkpoint: Checkpoint,
    digest: str,
    quantization: Quantization,
    device: str,
    work: Path,
    progress: Progress,
) -> Subject:
    """The quantized model, made when a session is opened, and not before.

    Its blocks lie in the folder `work` as long as it is used. Raises UserError for a recipe or
    prompts that do not fit.
    """
    quant = quantization.quant
    recipe = make_recipe(quantization.recipe, checkpoint.spec, quant, "fp32")
    settings = default_settings(checkpoint, DecodeOptions())
    canvas = longest_canvas(checkpoint, DecodeOptions(), settings)
    prompts = read_prompts(
        checkpoint, quantization.calib, quantization.calib_prompts, HELD_OUT, quant.seed,
        settings.gen_length,
    )  # fmt: skip
    check_lengths(prompts, settings, canvas)

    @functools.cache
    def model() -> FloatModel:
        with open_work(work) as opened:
            made = run_recipe(
                checkpoint, digest, recipe, settings, canvas, prompts, device_of(device), Alone(),
                opened, progress,
            )  # fmt: skip
        return simulated(checkpoint, made.quantized, made.recipe, device_of(device), room(device))

    def session(guided: bool, wanted: frozenset[str], cached: bool) -> Session:
        return FloatSession(model(), plain.facts.vocab_size)

    plain = model_subject(checkpoint, float_model(checkpoint, device), digest)
    made_of = repr((digest, recipe, settings, prompts))
    return replace(
        plain,
        name=f"{plain.name} {recipe.name}",
        digest=hashlib.sha256(made_of.encode()).hexdigest(),
        open=session,
        logits=lambda: of_model(model()),
        recipe=recipe.name,
        is_float=False,
    )
