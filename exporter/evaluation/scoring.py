"""Likelihoods of the answers in a file of questions, and how they sum up."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.agreement import wilson
from exporter.errors import UserError
from exporter.evaluation.accuracy import Versus, versus
from exporter.evaluation.choices import Piece, Question
from exporter.evaluation.items import check_ids, check_length
from exporter.evaluation.likelihood import MonteCarlo, log_likelihood
from exporter.evaluation.raw_logits import RawLogits
from exporter.evaluation.run_folder import Run
from exporter.evaluation.subject import Subject
from exporter.progress import Progress, Step

PART = "likelihood"  # file of a run
Z = 1.96  # half of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Scored:
    """One question; lists have an entry a choice."""

    index: int
    task: str
    tokens: list[int]
    log_likelihood: list[float]  # nats
    error: list[float | None]  # standard error of the estimate
    answer: int  # the right choice
    chosen: int  # the most likely one


@dataclass(frozen=True)
class Encoded:
    """A question in token ids."""

    index: int
    task: str
    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int


@dataclass(frozen=True)
class Mean:
    """A mean over answers, with its 95 % interval; None from a single answer."""

    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Likelihood:
    """Right answers of a task, in nats. The noise of the draws is part of all intervals."""

    task: str
    questions: int
    tokens: int
    per_answer: Mean
    per_token: Mean
    per_answer_versus: Mean | None  # minus the other run, answer by answer under the same masks
    accuracy: float | None  # share whose most likely choice is right; None: no choices
    interval: tuple[float, float] | None
    accuracy_versus: Versus | None


def encode_questions(subject: Subject, questions: Sequence[Question], chat: bool) -> list[Encoded]:
    """Token ids of all questions. Raises UserError for what the subject cannot read or score."""
    found: list[Encoded] = []
    if questions:
        opens_logits(subject)
    for index, question in enumerate(questions):
        prompt = _encode_prompt(subject, question, chat)
        choices = tuple(_encode_choice(subject, question.task, c) for c in question.choices)
        check_length(subject, question.task, len(prompt), max(map(len, choices)))
        found.append(Encoded(index, question.task, prompt, choices, question.answer))
    return found


def opens_logits(subject: Subject) -> Callable[[], RawLogits]:
    """What opens the logits of `subject`. Raises UserError where these are none, or no use."""
    if subject.logits is None:
        raise UserError(
            f"The graphs of `{subject.name}` return reductions, no logits to score with",
            "Build the bundle with --outputs logits, or evaluate its checkpoint",
        )
    if subject.facts.commit == "causal":
        raise UserError(
            f"`{subject.name}` sees both sides of a token in one block at a time, so masks drawn"
            " over a whole answer are none that it was trained on",
            "Give tasks that are decoded",
        )
    return subject.logits


def score(
    subject: Subject, questions: Sequence[Encoded], how: MonteCarlo, run: Run, progress: Progress
) -> list[Scored]:
    """The likelihoods of every question, in order; those that the run has are not made again."""
    done = run.read(PART, Scored)
    left = [question for question in questions if question.index not in done]
    if not left:
        return run.complete(PART, done, [])
    logits, mask_id = opens_logits(subject)(), subject.facts.mask_id

    def scored(question: Encoded, step: Step) -> Iterator[Scored]:
        found = []
        for choice in question.choices:
            found.append(
                log_likelihood(logits, mask_id, question.prompt, choice, how, question.index)
            )
            step()
        values = [estimate.log_likelihood for estimate in found]
        yield Scored(
            index=question.index,
            task=question.task,
            tokens=[len(choice) for choice in question.choices],
            log_likelihood=values,
            error=[estimate.error for estimate in found],
            answer=question.answer,
            chosen=int(np.argmax(values)),
        )

    with progress.stage("likelihood", sum(len(q.choices) for q in left)) as step:
        return run.complete(PART, done, (scored(question, step) for question in left))


def likelihoods(ours: Sequence[Scored], theirs: Sequence[Scored] | None) -> list[Likelihood]:
    """One a task, in the order in which tasks occur."""
    tasks = list(dict.fromkeys(line.task for line in ours))
    return [
        _summary(
            task,
            [line for line in ours if line.task == task],
            None if theirs is None else [line for line in theirs if line.task == task],
        )
        for task in tasks
    ]


def mean_of(values: Sequence[float]) -> Mean:
    """Mean with the normal interval of its standard error."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Mean(mean, None)
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Mean(mean, (mean - half, mean + half))


def ratio_of(values: Sequence[float], sizes: Sequence[int]) -> Mean:
    """Σ values / Σ sizes, with the linearized interval of a ratio (Cochran 1977, eq. 2.46)."""
    v, s = np.array(values), np.array(sizes, np.float64)
    ratio = float(v.sum() / s.sum())
    rest = mean_of(((v - ratio * s) / s.mean()).tolist()).interval  # around 0
    return Mean(ratio, None if rest is None else (ratio + rest[0], ratio + rest[1]))


def _summary(task: str, ours: list[Scored], theirs: list[Scored] | None) -> Likelihood:
    values = [line.log_likelihood[line.answer] for line in ours]
    sizes = [line.tokens[line.answer] for line in ours]
    right, compared, other = _choices_right(ours), None, None
    if theirs is not None:
        rest = [line.log_likelihood[line.answer] for line in theirs]
        compared = mean_of([a - b for a, b in zip(values, rest, strict=True)])
        other = versus(right, _choices_right(theirs)) if right else None
    return Likelihood(
        task=task,
        questions=len(ours),
        tokens=sum(sizes),
        per_answer=mean_of(values),
        per_token=ratio_of(values, sizes),
        per_answer_versus=compared,
        accuracy=sum(right) / len(right) if right else None,
        interval=wilson(sum(right), len(right)) if right else None,
        accuracy_versus=other,
    )


def _choices_right(lines: Sequence[Scored]) -> list[bool]:
    """Of the questions that leave a choice, which are answered right."""
    return [line.answer == line.chosen for line in lines if len(line.tokens) > 1]


def _encode_prompt(subject: Subject, question: Question, chat: bool) -> tuple[int, ...]:
    prompt: Piece = question.prompt
    if isinstance(prompt, str):
        if subject.text is None:
            raise _no_tokenizer(subject, question.task)
        prompt = tuple(subject.text.encode(prompt, subject.facts.mask_id, chat))
    return check_ids(subject, question.task, prompt)


def _encode_choice(subject: Subject, task: str, choice: Piece) -> tuple[int, ...]:
    if isinstance(choice, str):
        if subject.tokenizer is None:
            raise _no_tokenizer(subject, task)
        choice = tuple(subject.tokenizer.encode(choice, add_special_tokens=False).ids)
        if not choice:
            raise UserError(f"An answer of `{task}` has no tokens", "Write one that has")
    return check_ids(subject, task, choice)


def _no_tokenizer(subject: Subject, task: str) -> UserError:
    return UserError(
        f"`{task}` holds text, but `{subject.name}` has no tokenizer",
        'Give lists of token ids: {"prompt": [5, 7], "answer": [9]}',
    )
