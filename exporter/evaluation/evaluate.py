"""An evaluation from its inputs to its figures. It reads top to bottom."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import UserError
from exporter.evaluation import generation, scoring, straying
from exporter.evaluation.accuracy import Accuracy, accuracies
from exporter.evaluation.batches import Item, make_batches
from exporter.evaluation.choices import Question
from exporter.evaluation.items import make_items, settings_for
from exporter.evaluation.likelihood import MonteCarlo
from exporter.evaluation.run_folder import L, Plan, Run, open_run, read_run
from exporter.evaluation.scoring import Likelihood, encode_questions, likelihoods
from exporter.evaluation.straying import Straying, spread
from exporter.evaluation.subject import Hardware, Subject
from exporter.progress import Progress
from exporter.tasks import Example
from exporter.tasks.examples import check_code


@dataclass(frozen=True)
class EvalOptions:
    """What `dqexport eval` can be told beside subject and tasks."""

    decode: Mapping[str, Any] = field(default_factory=dict)  # fields of Settings that were given
    chat: bool = True  # put prompts into the chat template, where there is one
    batch: int | None = None  # prompts decoded together; None: what memory takes
    allow_code: bool = False  # run programs that the model wrote
    monte_carlo: MonteCarlo = field(default_factory=MonteCarlo)
    trajectory: int = 0  # prompts that are compared with the float model
    hardware: Hardware = field(default_factory=Hardware)  # that the subject was opened on
    out: Path | None = None  # keep the run here; it goes on if it was killed
    against: Path | None = None  # another run, on the same examples


@dataclass(frozen=True)
class Evaluation:
    """All figures; a part that was not asked for is empty or None."""

    subject: str
    digest: str
    recipe: str | None
    run: str | None
    against: str | None
    generation: list[Accuracy]
    likelihood: list[Likelihood]
    trajectory: Straying | None


def evaluate(
    subject: Subject,
    examples: Sequence[Example],
    questions: Sequence[Question],
    twin: Subject | None,
    options: EvalOptions,
    progress: Progress,
) -> Evaluation:
    """Decode `examples`, score `questions`, follow the float `twin`: each where there are any.

    Raises UserError on anything that the user can mend, before the first model call.
    """
    items = make_items(subject, examples, options.decode, options.chat)
    encoded = encode_questions(subject, questions, options.chat)
    followed = _followed(subject, twin, items, options)
    batches = make_batches(items, subject.facts.vocab_size, options.batch)
    for example in examples:
        check_code(example, options.allow_code)
    plan = _plan(subject, examples, questions, twin, len(followed), options)
    counts, other = (len(examples), len(questions)), _Other(None, None)
    if options.against:
        other = _comparable(options.against, plan, counts)
    strayed = None
    with open_run(options.out, plan, subject.name) as run:
        outcomes = generation.generate(subject, batches, run, options.allow_code, progress)
        scored = scoring.score(subject, encoded, options.monte_carlo, run, progress)
        if twin is not None and followed:
            strayed = straying.follow(subject, twin, followed, options.batch, run, progress)
    return Evaluation(
        subject=subject.name,
        digest=subject.digest,
        recipe=subject.recipe,
        run=str(options.out) if options.out else None,
        against=str(options.against) if options.against else None,
        generation=accuracies(outcomes, other.generation),
        likelihood=likelihoods(scored, other.likelihood),
        trajectory=None if strayed is None else straying.straying(strayed),
    )


@dataclass(frozen=True)
class _Other:
    """Finished results of another run on the same examples; None: it has none."""

    generation: list[generation.Outcome] | None
    likelihood: list[scoring.Scored] | None


def _followed(
    subject: Subject, twin: Subject | None, items: Sequence[Item], options: EvalOptions
) -> list[Item]:
    """The items whose trajectories are compared."""
    if not options.trajectory:
        return []
    if twin is None:
        raise UserError(
            f"Trajectories are compared with the float model, which `{subject.name}` is not",
            "Name its checkpoint with --float",
        )
    if twin.facts.vocab_size != subject.facts.vocab_size or (
        twin.facts.mask_id != subject.facts.mask_id
    ):
        raise UserError(
            f"`{twin.name}` has {twin.facts.vocab_size} ids and mask {twin.facts.mask_id},"
            f" `{subject.name}` {subject.facts.vocab_size} and {subject.facts.mask_id}",
            "Give the checkpoint that the subject was built from",
        )
    chosen = spread(items, options.trajectory)
    if not chosen or not all(item.settings.gen_length for item in chosen):
        raise UserError(
            "There is nothing to follow: no prompts, or answers of length 0",
            "Give task files, and --gen-length of 1 or more",
        )
    return chosen


def _plan(
    subject: Subject,
    examples: Sequence[Example],
    questions: Sequence[Question],
    twin: Subject | None,
    followed: int,
    options: EvalOptions,
) -> Plan:
    """All that decides the numbers of a run."""
    hardware = {k: v for k, v in asdict(options.hardware).items() if k != "threads"}
    parts = ("generation", "likelihood", "trajectory")
    plan: dict[str, Mapping[str, object] | None] = dict.fromkeys(parts)
    plan["subject"] = {"digest": subject.digest, "recipe": subject.recipe, **hardware}
    if examples:
        plan["generation"] = {
            "examples": _digest(examples),
            "settings": asdict(settings_for(subject.settings, options.decode, None)),
            "stated": sorted(options.decode),  # these go before what examples say
            "chat_template": options.chat,
            "batch": options.batch,
        }
    if questions:
        how = asdict(options.monte_carlo)
        plan["likelihood"] = {"questions": _digest(questions), "chat": options.chat, **how}
    if twin is not None and followed:
        plan["trajectory"] = {"prompts": followed, "float": twin.digest}
    return plan


def _digest(content: Sequence[object]) -> str:
    return f"{len(content)}, {hashlib.sha256(repr(list(content)).encode()).hexdigest()[:16]}"


def _comparable(folder: Path, plan: Plan, counts: tuple[int, int]) -> _Other:
    """The results of the run in `folder` that can be set beside those of `plan`.

    `counts` of examples and of questions.
    """
    other = read_run(folder)
    ours, theirs = plan["generation"], other.plan["generation"]
    same = ours is not None and theirs is not None and ours["examples"] == theirs["examples"]
    scores = plan["likelihood"] is not None and plan["likelihood"] == other.plan["likelihood"]
    if not same and not scores:
        raise UserError(
            f"The run in `{folder}` is on other examples, or draws likelihoods otherwise",
            "Compare runs with equal task files, --limit, --likelihood, --mc-num and --seed",
        )
    return _Other(
        _finished(other, generation.PART, generation.Outcome, counts[0]) if same else None,
        _finished(other, scoring.PART, scoring.Scored, counts[1]) if scores else None,
    )


def _finished(run: Run, part: str, kind: type[L], count: int) -> list[L]:
    lines = run.read(part, kind)
    if len(lines) < count:
        raise UserError(
            f"The run in `{run.folder}` has {len(lines)} of {count} lines in {part}.jsonl",
            "Finish it first: run its command again",
        )
    return [lines[index] for index in sorted(lines)]
