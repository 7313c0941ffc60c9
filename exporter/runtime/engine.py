"""A bundle that is ready to decode: its tokenizer, and the graph that the settings ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .answer import Answer, Trace, answers, changes, moved
from .bundle import Bundle
from .candidates import wanted
from .errors import UserError
from .loop import Result, Step, decode
from .open_model import Hardware, Model, open_model
from .runs_on import RunsOn
from .session import Bools
from .settings import Settings
from .statistics import Clock, Statistics
from .task import Task, make_canvas, make_task
from .text import Text

View = Callable[[Task, Iterator[Step], Clock], None]
"""Takes all steps of a run, one after the other, and shows what it likes of them."""


@dataclass(frozen=True)
class Run:
    """What came of one batch."""

    answers: list[Answer]
    statistics: Statistics
    inexact_draws: int
    runs_on: RunsOn


class Engine:
    """Decodes batches with one bundle."""

    def __init__(
        self,
        bundle: Bundle,
        text: Text | None,
        hardware: Hardware,
        allowed: Bools | None = None,
        rows: int = 1,
    ) -> None:
        """`allowed` [vocabulary]: the ids that may be predicted; `rows`: the largest batch."""
        self.bundle, self.text = bundle, text
        self._hardware, self._allowed, self._rows = hardware, allowed, rows
        self._loaded: tuple[bool, bool, frozenset[str]] | None = None
        self._session: Model | None = None
        self._said: set[str] = set()

    def open(self, settings: Settings) -> Model:
        """The session for `settings`, loaded unless the last one can do it.

        Raises `UserError` where the loop or the graphs cannot decode so.
        """
        model = self.bundle.model
        make_task(model, settings, *make_canvas([[model.pad_id]], settings.gen_length, model))
        guided, cached = settings.cfg_scale > 0, settings.cache != "none"
        names = wanted(settings)
        if self._session is not None and self._loaded is not None:
            was_guided, was_cached, has = self._loaded
            if (guided, cached) == (was_guided, was_cached) and names <= has:
                return self._session
        self._session = None  # two graphs at a time would take the memory of two models
        self._session = open_model(
            self.bundle, guided, names, cached, self._hardware, self._rows, self._allowed, self._say
        )
        self._loaded = guided, cached, names
        return self._session

    def _say(self, text: str) -> None:
        if text not in self._said:
            print(text, file=sys.stderr)
        self._said.add(text)

    def decode(self, prompts: list[list[int]], settings: Settings, view: View) -> Run:
        """Decode prompts together. Raises `UserError`, also where the model returns NaN."""
        model, session = self.bundle.model, self.open(settings)
        task = make_task(model, settings, *make_canvas(prompts, settings.gen_length, model))
        result, trace = Result(task.canvas), Trace()
        clock = Clock(session, result, model.mask_id)
        steps = decode(
            clock.session, model, settings, task.canvas, task.prompt_length, task.key_mask, result
        )
        view(task, _recorded(clock.timed(steps), result, trace), clock)
        return Run(answers(task, trace), clock.read(), result.inexact_draws, session.runs_on)


def _recorded(steps: Iterator[Step], result: Result, trace: Trace) -> Iterator[Step]:
    """The same steps; their changes are added to `trace`."""
    for step in steps:
        if result.nans:
            raise UserError(
                f"the model returned NaN in forward {result.forwards}",
                hint="16-bit floats may overflow: build the bundle with another recipe or target",
            )
        trace += [(step.index, *change) for change in changes(step)]
        if step.grown:
            trace[:] = [(index, row, moved(step, row, at), i) for index, row, at, i in trace]
        yield step
