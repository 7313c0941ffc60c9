"""What the float model does on held-out prompts: the yardstick of the gate.

Every state and its top log probabilities are kept, so that a bundle can be measured again on a
device that has never seen the checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from exporter.agreement import log_probabilities
from exporter.decoding import most_calls
from exporter.float_session import FloatModel, FloatSession
from exporter.progress import Progress
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.loop import decode
from exporter.runtime.session import Bools, Floats, Ints, Reductions
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from exporter.tensor_files import read_header, write_tensors
from exporter.work import Work

TOP = frozenset({"id1", "l1", "rest", "topk_ids", "topk_logits"})


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
    with progress.stage("float decode", most_calls(settings)) as done:
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
