"""Answers, decoded by the loop that bundles ship, and whether they are right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.decoding import most_calls
from exporter.evaluation.batches import Batch
from exporter.evaluation.run_folder import Run
from exporter.evaluation.subject import Subject
from exporter.progress import Progress, Step
from exporter.runtime.answer import shown_from
from exporter.runtime.candidates import wanted
from exporter.runtime.ending import first_stop
from exporter.runtime.loop import decode
from exporter.runtime.session import Session
from exporter.runtime.task import Task, make_canvas, make_task
from exporter.tasks import is_correct

PART = "results"  # file of a run


@dataclass(frozen=True)
class Answer:
    """One decoded prompt."""

    text: str  # up to the end of the answer; ids where there is no tokenizer
    tokens: int  # generated, the end-of-text token included
    forwards: int  # model calls that it takes when it is decoded alone


@dataclass(frozen=True)
class Outcome:
    """What came of one example."""

    index: int
    task: str
    text: str
    correct: bool | None  # None: the example has no answer
    tokens: int
    forwards: int


def generate(
    subject: Subject, batches: Sequence[Batch], run: Run, allow_code: bool, progress: Progress
) -> list[Outcome]:
    """The outcome of every item, in order; those that the run has are not made again."""
    done = run.read(PART, Outcome)
    left = [b for b in batches if not all(item.index in done for item in b.items)]
    if not left:
        return run.complete(PART, done, [])
    session = open_for(subject, left)

    def outcomes(batch: Batch, step: Step) -> Iterator[Outcome]:
        found = decode_batch(subject, session, batch, step)
        for item, answer in zip(batch.items, found, strict=True):
            example = item.example
            checked = example.answer is not None
            correct = is_correct(example, answer.text, allow_code) if checked else None
            yield Outcome(item.index, example.task, correct=correct, **vars(answer))

    with progress.stage("decode", sum(most_calls(batch.settings) for batch in left)) as step:
        return run.complete(PART, done, (outcomes(batch, step) for batch in left))


def open_for(subject: Subject, batches: Sequence[Batch]) -> Session:
    """A session that can decode all of `batches`, which differ in their lengths alone."""
    settings = batches[0].settings
    return subject.open(settings.cfg_scale > 0, wanted(settings), settings.cache != "none")


def decode_batch(subject: Subject, session: Session, batch: Batch, step: Step) -> list[Answer]:
    """The answers to a batch; `step` is called as often as `most_calls` says."""
    model, settings = subject.facts, batch.settings
    canvas, start, key_mask = make_canvas(batch.prompts, settings.gen_length, model)
    task = make_task(model, settings, canvas, start, key_mask)
    forwards, calls = np.zeros(len(canvas), np.int64), most_calls(settings)
    for call in decode(session, model, settings, canvas, start, key_mask):
        # a row that changes nothing would not have been fed alone, but for a last look at a block
        changed = {row for row, *_ in [*call.commits, *call.edits, *call.grown]}
        forwards[sorted(changed)] += 1
        if calls > 0:
            calls -= 1
            step()
    for _ in range(calls):
        step()
    return [_answer(subject, task, row, int(forwards[row])) for row in range(len(canvas))]


def _answer(subject: Subject, task: Task, row: int, forwards: int) -> Answer:
    end = task.prompt_length + task.settings.gen_length  # block-causal models may go further
    stop = min(int(first_stop(task.canvas[[row]], task.prompt_length, task.model)[0]), end)
    shown = task.canvas[row, shown_from(task, row) : stop].tolist()
    text = subject.text.decode(shown) if subject.text else ",".join(map(str, shown))
    last = min(stop + 1, end)  # the end-of-text token was generated too
    return Answer(text, last - task.prompt_length, forwards)
