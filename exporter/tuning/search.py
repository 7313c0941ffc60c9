"""The search: score rules, then blocks and caches for those that stay within the budget.

Every setting that is scored is a run of `dqexport eval` below OUT/runs, on the same prompts and
compared with the settings of the bundle prompt by prompt: a search that was killed goes on.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from exporter.errors import UserError
from exporter.evaluation.accuracy import Versus, versus
from exporter.evaluation.evaluate import EvalOptions, evaluate
from exporter.evaluation.generation import PART, Outcome
from exporter.evaluation.items import make_items
from exporter.evaluation.run_folder import read_run
from exporter.evaluation.subject import Subject
from exporter.progress import Progress
from exporter.runtime.errors import UserError as RuntimeUserError
from exporter.tasks import Example
from exporter.tuning.candidates import Candidate, rules, schedules
from exporter.tuning.timing import time_answers

BASELINE = Candidate("as built", {})
CARRIED = 3  # rules that are tried with other blocks and caches


@dataclass(frozen=True)
class TuneOptions:
    """What the search can be told."""

    budget: float = 0.01  # accuracy that may be given up, as a share
    timed: int = 4  # prompts that speed is measured on
    rounds: int = 3  # of timing
    chat: bool = True
    allow_code: bool = False


@dataclass(frozen=True)
class Trial:
    """One setting: what it gets right and what it takes."""

    name: str
    decode: Mapping[str, Any]
    prompts: int  # that have an answer
    accuracy: float
    against: Versus  # the settings of the bundle, prompt by prompt
    forwards: float  # a prompt
    seconds: float  # an answer, alone

    def within(self, budget: float) -> bool:
        """Whether no more than the budget is lost, as measured."""
        return self.against.difference >= -budget


def tune(
    subject: Subject,
    examples: Sequence[Example],
    options: TuneOptions,
    out: Path,
    progress: Progress,
) -> list[Trial]:
    """Every setting that was tried, the bundle's own first.

    Raises UserError where no example has an answer, or the tasks do not fit the subject.
    """
    if not any(example.answer is not None for example in examples):
        raise UserError("No example has an answer to compare with", "Give tasks with answers")
    search = Search(loaded_once(subject), examples, options, out, progress)
    first = [BASELINE, *rules(subject.facts, subject.settings)]
    trials = search.score(first)
    passing = [trial for trial in trials[1:] if trial.within(options.budget)]
    carried = sorted(passing, key=lambda trial: trial.seconds)[:CARRIED]
    more = [
        Candidate(" ".join([trial.name, *(f"{k}={v}" for k, v in schedule.items())]),
                  {**trial.decode, **schedule})
        for trial in carried
        for schedule in schedules(subject.facts, subject.settings)
    ]  # fmt: skip
    return search.timed(trials + search.score(more))


def loaded_once(subject: Subject) -> Subject:
    """The same subject, whose models stay in memory for whoever asks for them again."""
    return replace(subject, open=cache(subject.open))


def winner(trials: Sequence[Trial], budget: float) -> Trial:
    """The fastest within the budget; the settings of the bundle are always within."""
    return min((t for t in trials if t.within(budget)), key=lambda t: t.seconds)


def frontier(trials: Iterable[Trial]) -> list[Trial]:
    """Those that none beats in both accuracy and speed, the fastest first."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.seconds, -t.accuracy)):
        if not found or trial.accuracy > found[-1].accuracy:
            found.append(trial)
    return found


@dataclass(frozen=True)
class Search:
    """One subject and its prompts."""

    subject: Subject
    examples: Sequence[Example]
    options: TuneOptions
    out: Path
    progress: Progress

    def score(self, candidates: Sequence[Candidate]) -> list[Trial]:
        """Accuracy and forwards; seconds are forwards for now. What cannot be decoded is left out:
        a block that does not divide an example's own answer length, say.
        """
        trials = []
        with self.progress.stage("tune", len(candidates)) as step:
            for candidate in candidates:
                outcomes = self._outcomes(candidate)
                step()
                if outcomes is not None:
                    trials.append(self._trial(candidate, outcomes))
        return trials

    def timed(self, trials: Sequence[Trial]) -> list[Trial]:
        """The same with measured seconds."""
        chosen = self.examples[:: max(1, len(self.examples) // self.options.timed)]
        chosen = chosen[: self.options.timed]
        items = {
            trial.name: make_items(self.subject, chosen, trial.decode, self.options.chat)
            for trial in trials
        }
        seconds = time_answers(self.subject, items, self.options.rounds, self.progress)
        return [replace(trial, seconds=seconds[trial.name]) for trial in trials]

    def _outcomes(self, candidate: Candidate) -> list[Outcome] | None:
        folder = self.out / "runs" / _folder_name(self.subject, candidate)
        options = EvalOptions(
            decode=candidate.decode,
            chat=self.options.chat,
            allow_code=self.options.allow_code,
            out=folder,
        )
        try:
            evaluate(self.subject, self.examples, [], None, options, Progress())
        except (UserError, RuntimeUserError):
            if candidate is BASELINE:
                raise
            return None
        lines = read_run(folder).read(PART, Outcome)
        return [lines[index] for index in sorted(lines)]

    def _trial(self, candidate: Candidate, outcomes: Sequence[Outcome]) -> Trial:
        base = self._outcomes(BASELINE)
        assert base is not None
        ours = [bool(o.correct) for o in outcomes if o.correct is not None]
        theirs = [bool(o.correct) for o in base if o.correct is not None]
        forwards = sum(o.forwards for o in outcomes) / len(outcomes)
        return Trial(
            name=candidate.name,
            decode=candidate.decode,
            prompts=len(ours),
            accuracy=sum(ours) / len(ours),
            against=versus(ours, theirs),
            forwards=forwards,
            seconds=forwards,
        )


def _folder_name(subject: Subject, candidate: Candidate) -> str:
    content = json.dumps([subject.digest, dict(candidate.decode)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
