"""What a run took: forwards, tokens, and the time inside and outside of the model.

Only the time between asking for a step and getting it counts, so what is done with a step, such as
drawing it on a terminal, is not part of any figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .answer import edits_of
from .loop import Result, Step
from .session import Cache, Reductions, Session


@dataclass(frozen=True)
class Statistics:
    """Of one batch, or with `total` of several. Seconds are those of the wall clock."""

    prompts: int
    tokens: int  # masks that were filled and stayed so
    edits: int  # tokens that were replaced by others, or by the mask
    forwards: int
    skipped: int  # upstream calls that could not change anything
    seconds: float
    model_seconds: float
    first_tokens: tuple[float, ...]  # of each batch: seconds until its first commit
    steps: tuple[float, ...]  # seconds of each step

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(self.forwards, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def as_json(self) -> dict[str, float | None]:
        """All figures by name; None where nothing was decoded."""
        return {
            "forwards": self.forwards,
            "skipped": self.skipped,
            "tokens": self.tokens,
            "edits": self.edits,
            "seconds": self.seconds,
            "model_seconds": self.model_seconds,
            "host_seconds": self.seconds - self.model_seconds,
            "tokens_per_forward": self.tokens_per_forward,
            "tokens_per_second": self.tokens_per_second,
            "step_seconds_median": float(np.median(self.steps)) if self.steps else None,
            "step_seconds_max": max(self.steps, default=None),
            "first_token_seconds": float(np.median(self.first_tokens))
            if self.first_tokens
            else None,
        }

    def line(self) -> str:
        """The most important figures in one line."""
        return (
            f"{self.forwards} forwards, {self.seconds:.2f} s,"
            f" {self.tokens_per_second:.1f} tokens/s,"
            f" {self.tokens_per_forward:.2f} tokens/forward"
        )

    def lines(self) -> list[str]:
        """All figures for a reader, one line each."""
        facts = self.as_json()
        edits = f", {self.edits} edits" if self.edits else ""
        steps = f"median {_short(facts['step_seconds_median'])}"
        median = " (median of batches)" if len(self.first_tokens) > 1 else ""
        return [
            f"prompts          {self.prompts}",
            f"forwards         {self.forwards}, {self.skipped} skipped",
            f"tokens           {self.tokens}{edits}",
            f"tokens/forward   {self.tokens_per_forward:.2f}",
            f"tokens/s         {self.tokens_per_second:.1f}",
            f"seconds          {_short(self.seconds)}: model {_short(self.model_seconds)},"
            f" host {_short(self.seconds - self.model_seconds)}",
            f"seconds/step     {steps}, max {_short(facts['step_seconds_max'])}",
            f"first token      {_short(facts['first_token_seconds'])}{median}",
        ]


def _short(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3g} s"


def total(parts: Sequence[Statistics]) -> Statistics:
    """The figures of several batches together."""
    return Statistics(
        prompts=sum(part.prompts for part in parts),
        tokens=sum(part.tokens for part in parts),
        edits=sum(part.edits for part in parts),
        forwards=sum(part.forwards for part in parts),
        skipped=sum(part.skipped for part in parts),
        seconds=sum(part.seconds for part in parts),
        model_seconds=sum(part.model_seconds for part in parts),
        first_tokens=tuple(first for part in parts for first in part.first_tokens),
        steps=tuple(step for part in parts for step in part.steps),
    )


class Clock:
    """Times one run: decode with `session`, and take the steps from `timed`."""

    def __init__(self, session: Session, result: Result, mask_id: int) -> None:
        self.session = TimedSession(session)
        self._result, self._mask_id = result, mask_id
        self._seconds, self._tokens, self._edits = 0.0, 0, 0
        self._first_token: float | None = None
        self._steps: list[float] = []

    def timed(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps."""
        while True:
            start = time.perf_counter()
            step = next(steps, None)
            seconds = time.perf_counter() - start
            self._seconds += seconds
            if step is None:
                return
            self._steps.append(seconds)
            self._count(step)
            yield step

    def _count(self, step: Step) -> None:
        before = step.canvas_before
        filled = sum(before[row, place] == self._mask_id for row, place, _ in step.commits)
        edits = edits_of(step)
        masked_again = sum(new == self._mask_id for _, _, _, new in edits)
        self._tokens += int(filled) - masked_again
        self._edits += len(edits)
        if self._first_token is None and step.commits:
            self._first_token = self._seconds

    def read(self) -> Statistics:
        """The figures so far."""
        return Statistics(
            prompts=len(self._result.canvas),
            tokens=self._tokens,
            edits=self._edits,
            forwards=self._result.forwards,
            skipped=self._result.skipped,
            seconds=self._seconds,
            model_seconds=self.session.seconds,
            first_tokens=() if self._first_token is None else (self._first_token,),
            steps=tuple(self._steps),
        )


class TimedSession:
    """A session that adds up the seconds of its forwards."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.seconds = 0.0

    def forward(self, *args: Any, **options: Any) -> Reductions:
        """See `session.Session`."""
        start = time.perf_counter()
        try:
            return self._session.forward(*args, **options)
        finally:
            self.seconds += time.perf_counter() - start

    def new_cache(self, rows: int, length: int) -> Cache:
        """See `session.Session`."""
        return self._session.new_cache(rows, length)
