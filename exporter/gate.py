"""The gate: the emitted bundle, run by its own loop, against the float model.

Two measurements on held-out prompts. Free-running: both decode on their own; tokens are compared.
Teacher-forced: the bundle predicts at every state of the float trajectories; what counts are the
positions that the float model commits there, because an error anywhere else can still be mended.

Arg-max agreement is reported, but a changed choice between two equally likely tokens is no fault.
What counts is the regret: the probability, by the float model, that is given up with the bundle's
choice. For a model that is sure of its tokens it equals the share of changed choices.

KL divergence is taken over the ids in the top K of both sides and one bin for all the others. By
the data-processing inequality this is at most the divergence of the full distributions.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from exporter.errors import UserError
from exporter.float_session import FloatModel, FloatSession
from exporter.manifest import GateResult, significant
from exporter.progress import Progress
from exporter.recipes import Limits
from exporter.runtime.bundle import ModelFacts, read_bundle
from exporter.runtime.forward import special_bias
from exporter.runtime.loop import decode
from exporter.runtime.session import Bools, Ints, Reductions
from exporter.runtime.session_ort import open_session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from exporter.tensor_files import read_header, write_tensors
from exporter.work import Work

TOP = frozenset({"id1", "l1", "rest", "topk_ids", "topk_logits"})
BINS = 4  # of the mask ratio

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """What the float model did: B prompts, T model calls, N commits, K best ids."""

    prompt_length: int  # padded on the left to this
    key_mask: Ints  # (B, L) 0 or 1
    answer: Ints  # (B, L) canvas at the end
    canvases: Ints  # (T, B, L) before each call
    commits: Ints  # (N, 4): call, row, position, id
    top_ids: Ints  # (N, K)
    top_logp: Floats  # (N, K) log probabilities

    def save(self, file: Path) -> None:
        """Write as safetensors; a bundle carries it, so that the gate can be run again anywhere."""
        tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in vars(self).items()}
        write_tensors(file, tensors)

    @classmethod
    def load(cls, file: Path) -> "Reference":
        arrays: dict[str, Any] = {n: e.read().numpy() for n, e in read_header(file).items()}
        return cls(**{**arrays, "prompt_length": int(arrays["prompt_length"])})


class _WithTop:
    """The float session, asked for the top K at every call."""

    def __init__(self, session: FloatSession) -> None:
        self._session = session

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
    ) -> Reductions:
        return self._session.forward(
            ids, key_mask, window, bias, cfg_scale, temperature, wanted | TOP
        )


def record_reference(
    model: FloatModel,
    digest_of_weights: str,
    facts: ModelFacts,
    settings: Settings,
    prompts: Sequence[Sequence[int]],
    work: Work,
    progress: Progress,
) -> Reference:
    """The float model's answers to `prompts`, with every state and prediction."""
    stage = work.stage("reference", digest_of_weights, facts, settings, prompts)
    file = stage / "reference.safetensors"
    if not file.is_file():
        _decode_float(model, facts, settings, prompts, progress).save(file)
    return Reference.load(file)


def _decode_float(
    model: FloatModel,
    facts: ModelFacts,
    settings: Settings,
    prompts: Sequence[Sequence[int]],
    progress: Progress,
) -> Reference:
    session = _WithTop(FloatSession(model, facts.vocab_size))
    rows = [list(prompt) for prompt in prompts]
    canvas, prompt_length, key_mask = make_canvas(rows, settings.gen_length, facts)
    canvases: list[Ints] = []
    commits: list[tuple[int, int, int, int]] = []
    ids: list[Ints] = []
    logps: list[Floats] = []
    with progress.stage("float decode", 1) as done:
        for step in decode(session, facts, settings, canvas, prompt_length, key_mask):
            commits += [(len(canvases), *commit) for commit in step.commits]
            places = np.searchsorted(step.window, [c[1] for c in step.commits])
            at = ([c[0] for c in step.commits], places)
            ids.append(step.reductions["topk_ids"][at])
            logps.append(log_probabilities(step.reductions)[at])
            canvases.append(step.canvas_before)
        done()
    return Reference(
        prompt_length,
        key_mask.astype(np.int64),
        canvas,
        np.stack(canvases),
        np.array(commits, np.int64),
        np.concatenate(ids),
        np.concatenate(logps),
    )


def log_probabilities(found: Reductions) -> Floats:
    """Natural log probabilities (…, K) of the top K."""
    l1, rest = found["l1"].astype(np.float64), found["rest"].astype(np.float64)
    return np.asarray(found["topk_logits"] - (l1 + np.log1p(rest))[..., None], np.float64)


def measure(
    bundle: Path, reference: Reference, settings: Settings, limits: Limits, progress: Progress
) -> GateResult:
    """Run the bundle in `bundle` and compare. Only `passed` depends on `limits`.

    Where this machine lacks the bundle's execution provider the CPU runs the same graphs.
    """
    provider = usable_provider(read_bundle(bundle).runtime.providers)
    with progress.stage("gate", 2) as step:
        tokens, matches, divergence = _free_running(bundle, reference, settings, provider)
        step()
        agrees, regret, kl = _teacher_forced(bundle, reference, settings, provider)
        step()
    mean_regret, mean_kl = significant(float(regret.mean())), significant(float(kl.mean()))
    return GateResult(
        passed=mean_regret <= limits.regret and mean_kl <= limits.kl,
        provider=provider,
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
    )


def usable_provider(providers: Sequence[str]) -> str:
    """The first of `providers` that the installed ONNX Runtime has, else its CPU provider."""
    available = ort.get_available_providers()
    return next((p for p in providers if p in available), "CPUExecutionProvider")


def _free_running(
    bundle: Path, reference: Reference, settings: Settings, provider: str
) -> tuple[float, float, float]:
    """Token agreement, exact match, and mean step of the first difference (share of the steps)."""
    start, real = reference.prompt_length, reference.key_mask.astype(bool)
    prompts = reference.canvases[0][:, :start]
    ids = [
        ",".join(map(str, row[keep])) for row, keep in zip(prompts, real[:, :start], strict=True)
    ]
    command = [sys.executable, "-I", "-B", str(bundle / "decode.py"), "--json", "--no-early-stop"]
    command += ["--provider", provider]
    command += [part for text in ids for part in ("--ids", text)]
    for option in ("sampler", "gen_length", "steps", "block_length", "threshold", "factor", "eps"):
        if (value := getattr(settings, option)) is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"The emitted loop failed: {done.stderr.strip()}", f"Run it: {' '.join(command[:6])} …"
        )
    content = json.loads(done.stdout)
    results = content.get("results", [content])
    new = np.array([result["new"] for result in results])
    same = new == reference.answer[:, start:]
    last = int(reference.commits[:, 0].max()) + 1
    steps = sorted({step for result in results for step, _, _ in result["trace"]})
    calls = {step: call for call, step in enumerate(steps)}  # steps count skipped calls too
    firsts = []
    for row, result in enumerate(results):
        ours = {(calls[s], p) for s, p, _ in result["trace"]}
        pad = int((~real[row]).sum())
        theirs = reference.commits[reference.commits[:, 1] == row]
        wrong = [s for s, _, p, i in theirs.tolist() if (s, p - pad) not in ours
                 or result["ids"][p - pad] != i]  # fmt: skip
        firsts.append(min(wrong, default=last) / last)
    return float(same.mean()), float(same.all(1).mean()), float(np.mean(firsts))


def _teacher_forced(
    bundle: Path, reference: Reference, settings: Settings, provider: str
) -> tuple[Bools, Floats, Floats]:
    """Agreement, regret and KL divergence, (N,) each, at the committed positions."""
    opened = read_bundle(bundle)
    session = open_session(opened, guided=False, wanted=TOP, provider=provider)
    bias = special_bias(opened.model, settings)
    agrees = np.zeros(len(reference.commits), np.bool_)
    regret, kl = np.zeros(len(agrees)), np.zeros(len(agrees))
    for call in np.unique(reference.commits[:, 0]):
        which = np.flatnonzero(reference.commits[:, 0] == call)
        rows, positions = reference.commits[which, 1], reference.commits[which, 2]
        fed, row_at = np.unique(rows, return_inverse=True)
        window, column = np.unique(positions, return_inverse=True)
        found = session.forward(
            reference.canvases[call][fed],
            reference.key_mask[fed].astype(np.bool_),
            window,
            bias,
            None,
            None,
            TOP,
        )
        at = (row_at, column)
        agrees[which] = found["id1"][at] == reference.commits[which, 3]
        regret[which] = give_up(reference, which, found["id1"][at])
        logps, ids = log_probabilities(found)[at], found["topk_ids"][at]
        for n, mine, logp in zip(which, ids, logps, strict=True):
            kl[n] = divergence(reference.top_ids[n], reference.top_logp[n], mine, logp)
    return agrees, regret, kl


def give_up(reference: Reference, which: Ints, choices: Ints) -> Floats:
    """Float probability of the float choice minus that of `choices` (n,), for commits `which` (n,).

    A choice outside of the recorded top K counts as probability 0.
    """
    p = np.exp(reference.top_logp[which])
    ours = np.where(reference.top_ids[which] == choices[:, None], p, 0.0).sum(1)
    chosen = reference.top_ids[which] == reference.commits[which, 3][:, None]
    return np.asarray(np.where(chosen, p, 0.0).sum(1) - ours, np.float64)


def divergence(p_ids: Ints, p_log: Floats, q_ids: Ints, q_log: Floats) -> float:
    """KL(p ‖ q) in nats over the ids that both list and one bin for the rest; at least 0."""
    _, i, j = np.intersect1d(p_ids, q_ids, return_indices=True)
    p, q = np.exp(p_log[i]), np.exp(q_log[j])
    p_rest, q_rest = max(1 - p.sum(), 0.0), max(1 - q.sum(), 1e-12)
    total = float((p * (p_log[i] - q_log[j])).sum())
    total += p_rest * math.log(p_rest / q_rest) if p_rest > 1e-12 else 0.0
    return max(total, 0.0)


def _by_mask_ratio(reference: Reference, agrees: Bools) -> list[tuple[int, float]]:
    """Positions and agreement in bins of the mask ratio of their state, all masked first."""
    generated = reference.canvases[:, :, reference.prompt_length :]
    blank = generated[0, 0, 0]  # the first canvas is all masks
    ratios = (generated == blank).mean(-1)[reference.commits[:, 0], reference.commits[:, 1]]
    bins = np.minimum((BINS * (1 - ratios)).astype(int), BINS - 1)
    return [
        (int((bins == b).sum()), float(agrees[bins == b].mean()) if (bins == b).any() else 1.0)
        for b in range(BINS)
    ]


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson, 1927)."""
    p, n = hits / count, count
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
