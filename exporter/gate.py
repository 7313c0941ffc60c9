"""The gate: the emitted bundle, run by its own loop, against the float model.

Two measurements on held-out prompts. Free-running: both decode on their own; tokens are compared.
Teacher-forced: the bundle predicts at every state of the float trajectories; what counts are the
positions that the float model commits there, because an error anywhere else can still be mended.

Where the bundle's default is a cache that changes answers (prefix, dual), it decodes freely a third
time, with that cache; the float model has none. That number is only told: what the cache costs is
no fault of the quantization, and the verdict is about that.

Arg-max agreement is reported, but a changed choice between two equally likely tokens is no fault.
What counts is the regret: the probability, by the float model, that is given up with the bundle's
choice. For a model that is sure of its tokens it equals the share of changed choices.

KL divergence is taken over the ids in the top K of both sides and one bin for all the others. By
the data-processing inequality this is at most the divergence of the full distributions.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from exporter.agreement import wilson
from exporter.errors import UserError
from exporter.manifest import GateResult, significant
from exporter.progress import Progress
from exporter.recipe_names import Limits
from exporter.runtime.bundle import read_bundle
from exporter.runtime.session import Bools, Ints
from exporter.runtime.settings import Settings
from exporter.teacher_forcing import rows_at_once
from exporter.trajectory import BINS, Reference


def measure(
    bundle: Path,
    reference: Reference,
    settings: Settings,
    limits: Limits,
    progress: Progress,
    operators: bool = True,
) -> GateResult:
    """Run the bundle in `bundle` and compare. Only `passed` depends on `limits`.

    Where this machine lacks the bundle's execution provider the CPU runs the same graphs; without
    `operators` the standard ones run in the place of the bundle's own.
    """
    how = How(usable_provider(read_bundle(bundle).runtime.providers), operators)
    cached = _cached(read_bundle(bundle).decode.cache, settings)
    with progress.stage("gate", 2 if cached is None else 3) as step:
        tokens, matches, divergence = _free_running(bundle, reference, settings, how)
        step()
        agreement = None
        if cached is not None:
            agreement = _free_running(bundle, reference, cached, how)[0]
            step()
        forced = _teacher_forced(bundle, how)
        step()
    agrees, regret, kl = (forced[name] for name in ("agrees", "regret", "kl"))
    mean_regret, mean_kl = significant(float(regret.mean())), significant(float(kl.mean()))
    return GateResult(
        passed=mean_regret <= limits.regret and mean_kl <= limits.kl,
        provider=how.provider,
        prompts=len(reference.answer),
        tokens=settings.gen_length * len(reference.answer),
        token_agreement=tokens,
        exact_match=matches,
        first_divergence=divergence,
        positions=len(agrees),
        argmax_agreement=float(agrees.mean()),
        argmax_interval=wilson(int(agrees.sum()), len(agrees)),
        by_mask_ratio=_by_mask_ratio(reference, agrees),
        regret=mean_regret,
        kl=mean_kl,
        largest_regret=limits.regret,
        largest_kl=limits.kl,
        cache=None if cached is None else cached.cache,
        cached_agreement=agreement,
    )


@dataclass(frozen=True)
class How:
    """What runs a bundle's graphs."""

    provider: str
    operators: bool

    @property
    def options(self) -> list[str]:
        """Options of decode.py, and of the process of `exporter.teacher_forcing`."""
        return ["--provider", self.provider, *["--no-operators"] * (not self.operators)]


def _cached(cache: str, settings: Settings) -> Settings | None:
    """`settings` with the bundle's cache, if that changes answers and the rule goes with it."""
    by_blocks = not settings.by_canvas and not settings.rule.shadowed
    sees_all = not (settings.early_commit and cache == "dual")
    if cache in ("prefix", "dual") and by_blocks and sees_all:
        return replace(settings, cache=cache)
    return None


def usable_provider(providers: Sequence[str]) -> str:
    """The first of `providers` that the installed ONNX Runtime has, else its CPU provider."""
    available = ort.get_available_providers()
    return next((p for p in providers if p in available), "CPUExecutionProvider")


def _free_running(
    bundle: Path, reference: Reference, settings: Settings, how: How
) -> tuple[float, float, float]:
    """Token agreement, exact match, and mean call of the first difference (share of the calls)."""
    start = reference.prompt_length
    answer = reference.answer[:, start : start + settings.gen_length]
    results = _decode_with(bundle, reference, settings, how)
    same = np.array([result["new"] for result in results]) == answer
    firsts = reference.first_differences([result["trace"] for result in results])
    return float(same.mean()), float(same.all(1).mean()), float(np.mean(firsts))


def _decode_with(
    bundle: Path, reference: Reference, settings: Settings, how: How
) -> list[dict[str, Any]]:
    """What the bundle's own decode.py prints for the prompts of the reference."""
    real = reference.key_mask[:, : reference.prompt_length].astype(bool)
    given = reference.canvases[0][:, : reference.prompt_length]
    prompts = [row[keep] for row, keep in zip(given, real, strict=True)]
    by_row = settings.sampler in ("random", "origin")  # a row's number is part of its seed
    model = read_bundle(bundle).model
    window = settings.gen_length if settings.by_canvas else settings.block_length
    most = rows_at_once(reference.answer.shape[1], window, model.vocab_size)
    count = len(prompts) if by_row else most
    results: list[dict[str, Any]] = []
    for start in range(0, len(prompts), count):
        results += _run_loop(bundle, prompts[start : start + count], settings, how)
    return results


def _run_loop(
    bundle: Path, prompts: Sequence[Ints], settings: Settings, how: How
) -> list[dict[str, Any]]:
    command = [sys.executable, "-I", "-B", str(bundle / "decode.py"), "--json", "--no-early-stop"]
    command += [*how.options, "--batch", str(len(prompts))]
    for prompt in prompts:
        command += ["--ids", ",".join(map(str, prompt))]
    for option in ("sampler", "cache", "gen_length", "max_forwards", *settings.rule.reads):
        value = getattr(settings, option)
        if value is True:
            command += [f"--{option.replace('_', '-')}"]
        elif value not in (None, False):
            command += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"The emitted loop failed: {done.stderr.strip()}", f"Run it: {' '.join(command[:6])} …"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _teacher_forced(bundle: Path, how: How) -> dict[str, Any]:
    """Agreement, regret and KL divergence, (N,) each, at the committed positions.

    In a process of its own, as the free-running part: beside torch the runtime would double the
    memory of a build.
    """
    program = [sys.executable, "-P", "-B", "-m", "exporter.teacher_forcing"]
    command = [*program, str(bundle), *how.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"The emitted graphs failed: {done.stderr.strip()[-2000:]}",
            f"Run it: {' '.join(command)}",
        )
    return {name: np.array(values) for name, values in json.loads(done.stdout).items()}


def _by_mask_ratio(reference: Reference, agrees: Bools) -> list[tuple[int, float]]:
    """Positions and agreement in bins of the mask ratio of their state, all masked first."""
    bins = reference.bins()
    return [
        (int((bins == b).sum()), float(agrees[bins == b].mean()) if (bins == b).any() else 1.0)
        for b in range(BINS)
    ]
