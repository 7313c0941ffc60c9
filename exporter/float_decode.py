"""Decodes prompts with the float model, and records every state and prediction."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from exporter.agreement import log_probabilities
from exporter.decoding import most_calls, with_room
from exporter.float_session import FloatModel, FloatSession
from exporter.progress import Progress
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.loop import decode
from exporter.runtime.session import Bools, Cache, Floats, Ints, Reductions, Session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from exporter.trajectory import TOP, Reference
from exporter.work import Work


class _WithTop:
    """A session that is asked for the top K at every call."""

    def __init__(self, session: Session) -> None:
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
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        return self._session.forward(
            ids, key_mask, window, bias, cfg_scale, temperature, wanted | TOP, cache, start, causal,
            shadow,
        )  # fmt: skip

    def new_cache(self, rows: int, length: int) -> Cache:
        return self._session.new_cache(rows, length)


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
        session = FloatSession(model, facts.vocab_size)
        longest = max(map(len, prompts)) + settings.gen_length
        settings = with_room(settings, model.spec, len(prompts), longest)
        record(session, facts, settings, prompts, progress).save(file)
    return Reference.load(file)


def record(
    session: Session,
    facts: ModelFacts,
    settings: Settings,
    prompts: Sequence[Sequence[int]],
    progress: Progress,
) -> Reference:
    """What the model behind `session` does with `prompts`, at temperature 0 and unguided."""
    session = _WithTop(session)
    rows = [list(prompt) for prompt in prompts]
    canvas, prompt_length, key_mask = make_canvas(rows, settings.gen_length, facts)
    canvases: list[Ints] = []
    commits: list[tuple[int, int, int, int]] = []
    ids: list[Ints] = []
    logps: list[Floats] = []
    seen: list[tuple[int, int]] = []
    with progress.stage("float decode", most_calls(settings)) as done:
        for step in decode(session, facts, settings, canvas, prompt_length, key_mask):
            commits += [(len(canvases), *commit) for commit in step.commits]
            places = np.searchsorted(step.window, [c[1] for c in step.commits])
            at = ([c[0] for c in step.commits], places)
            ids.append(step.reductions["topk_ids"][at])
            logps.append(log_probabilities(step.reductions)[at])
            canvases.append(step.canvas_before)
            seen.append((step.stop, int(step.causal)))
            done()
    return Reference(
        prompt_length,
        key_mask.astype(np.int64),
        canvas,
        np.stack(canvases),
        np.array(commits, np.int64),
        np.concatenate(ids),
        np.concatenate(logps),
        *(np.array(seen, np.int64).T if facts.commit == "causal" else ()),
    )
