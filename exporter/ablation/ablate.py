"""Quantize a checkpoint with many recipes and seeds, in simulation, and evaluate each.

Every configuration is a run of `dqexport eval` below OUT/runs: what is finished is not done again,
and several processes may work on different seeds of one OUT. What they share, the float model, is
evaluated by the first and waited for by the others.
"""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.checkpoint import Checkpoint
from exporter.errors import UserError
from exporter.evaluation.evaluate import EvalOptions, Evaluation, evaluate
from exporter.evaluation.generation import PART, Outcome
from exporter.evaluation.simulated_subject import Quantization, simulated_subject
from exporter.evaluation.subject import Hardware, Subject, float_model, model_subject
from exporter.planner import bits_a_weight
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.tasks import Example

FLOAT = "float"


@dataclass(frozen=True)
class AblationOptions:
    """What is tried."""

    recipes: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)  # of calibration
    quant: QuantOptions = field(default_factory=QuantOptions)
    calib: Path | None = None
    calib_prompts: int = 128
    trajectory: int = 32  # prompts on which decoding is compared with float
    hardware: Hardware = field(default_factory=Hardware)


@dataclass(frozen=True)
class Trial:
    """One recipe with one seed, evaluated."""

    recipe: str
    seed: int
    bits: float  # a weight in the blocks, scales included
    outcomes: tuple[Outcome, ...]  # of all examples, in order
    figures: Evaluation


def ablate(
    checkpoint: Checkpoint,
    digest: str,
    examples: Sequence[Example],
    options: AblationOptions,
    out: Path,
    progress: Progress,
) -> list[Trial]:
    """All trials, the float model first. Raises UserError before any work on what cannot run."""
    if options.quant.mean_bits is not None or options.quant.budget is not None:
        raise UserError(
            "Mixed precision has other bits for every recipe and seed",
            "Compare such recipes with `dqexport eval --recipe … --against RUN`",
        )

    def quantized(name: str, seed: int, work: Path) -> Subject:
        """The model of a recipe, not made before it is asked for answers."""
        quant = replace(options.quant, seed=seed)
        quantization = Quantization(name, quant, options.calib, options.calib_prompts)
        return simulated_subject(
            checkpoint, digest, quantization, options.hardware.device, work, progress
        )

    planned = [(n, seed) for n in options.recipes for seed in _seeds(checkpoint, n, options)]
    for name, seed in planned:
        quantized(name, seed, out)  # refuses what cannot run
    model = float_model(checkpoint, options.hardware.device)
    twin = model_subject(checkpoint, model, digest)
    trials = [_try(twin, None, FLOAT, 0, 32.0, examples, options, out, progress)]
    for name, seed in planned:
        recipe = make_recipe(name, checkpoint.spec, options.quant, "fp32")
        bits = bits_a_weight(checkpoint.spec, recipe)
        with TemporaryDirectory() as work:
            subject = quantized(name, seed, Path(work))
            trials.append(_try(subject, twin, name, seed, bits, examples, options, out, progress))
    return trials


def _seeds(checkpoint: Checkpoint, name: str, options: AblationOptions) -> tuple[int, ...]:
    """Those that make a difference: one for a recipe that is not calibrated."""
    recipe = make_recipe(name, checkpoint.spec, options.quant, "fp32")
    return options.seeds if recipe.draw is not None else options.seeds[:1]


def _try(
    subject: Subject,
    twin: Subject | None,
    name: str,
    seed: int,
    bits: float,
    examples: Sequence[Example],
    options: AblationOptions,
    out: Path,
    progress: Progress,
) -> Trial:
    folder = out / "runs" / (name if twin is None else f"{name}-seed{seed}")
    asked = EvalOptions(
        trajectory=options.trajectory if twin else 0, hardware=options.hardware, out=folder
    )
    with _alone(folder):
        figures = evaluate(subject, examples, [], twin, asked, progress)
    lines = (folder / f"{PART}.jsonl").read_text().splitlines()
    outcomes = sorted((Outcome(**json.loads(line)) for line in lines), key=lambda o: o.index)
    return Trial(name, seed, bits, tuple(outcomes), figures)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is at work on the run in `folder`, and keeps others off it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
