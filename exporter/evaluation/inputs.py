"""What a command line names: the subject, its float twin, examples and questions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from exporter.errors import UserError
from exporter.evaluation.choices import Question, read_questions
from exporter.evaluation.likelihood import MonteCarlo
from exporter.evaluation.simulated_subject import Quantization, simulated_subject
from exporter.evaluation.subject import (
    UNTOLD,
    Hardware,
    Ids,
    Subject,
    float_model,
    folder_of,
    model_subject,
    open_float,
    open_subject,
)
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.runtime.errors import UserError as RuntimeUserError
from exporter.tasks import Example, read_examples

FILES = (".jsonl", ".txt")  # an argument that ends so is a file of examples


@dataclass(frozen=True)
class Names:
    """The inputs of an evaluation by name; see `dqexport eval --help`."""

    subject: str
    tasks: tuple[Path, ...]
    likelihood: Path | None = None
    twin: str | None = None  # None: the subject's own checkpoint, where it is one
    limit: int | None = None  # examples a task, and questions
    ids: Ids = UNTOLD
    quantization: Quantization | None = None  # of a checkpoint, in simulation
    work: Path | None = None  # where quantized blocks are kept; None: nowhere


@dataclass(frozen=True)
class Inputs:
    """The same, opened and read."""

    subject: Subject
    twin: Subject | None
    examples: list[Example]
    questions: list[Question]


def split_arguments(arguments: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """Subject and task files; without a subject it is the reference model."""
    first = [] if not arguments or arguments[0].endswith(FILES) else [arguments[0]]
    files = tuple(Path(name) for name in arguments[len(first) :])
    return (first or ["reference"])[0], files


@contextmanager
def open_inputs(names: Names, hardware: Hardware, progress: Progress) -> Iterator[Inputs]:
    """Open and read everything; the subject can be used until the end. Raises UserError."""
    asked = names.tasks or names.likelihood is None
    examples = read_tasks(names.subject, names.tasks, names.limit) if asked else []
    questions = [] if names.likelihood is None else read_questions(names.likelihood)
    with TemporaryDirectory() as scratch:
        subject, twin = _open(names, hardware, names.work or Path(scratch), progress)
        if names.twin is not None:
            twin = open_subject(names.twin, hardware, progress, names.ids)
        yield Inputs(subject, twin, examples, questions[: names.limit])


def _open(
    names: Names, hardware: Hardware, work: Path, progress: Progress
) -> tuple[Subject, Subject | None]:
    """The subject, and the float model that it was made from, where that is at hand."""
    if names.quantization is None:
        subject = open_subject(names.subject, hardware, progress, names.ids)
        return subject, subject if subject.is_float else None
    checkpoint, digest = open_float(names.subject, progress, names.ids)
    model = float_model(checkpoint, hardware.device)
    subject = simulated_subject(
        checkpoint, digest, names.quantization, hardware.device, work, progress
    )
    return subject, model_subject(checkpoint, model, digest)


def refuse_idle_flags(quant: QuantOptions, calib: Path | None, work: Path | None) -> None:
    """Raises UserError for flags of quantization where nothing is quantized."""
    usual = QuantOptions(seed=quant.seed)
    given = [each.name for each in fields(quant)
             if getattr(quant, each.name) != getattr(usual, each.name)]  # fmt: skip
    given += [name for name, value in (("calib", calib), ("work", work)) if value is not None]
    if given:
        raise UserError(
            f"--{given[0].replace('_', '-')} says how to quantize, but no recipe is named",
            "Name one with --recipe, or leave the flag out; a bundle is evaluated as it is",
        )


def monte_carlo(draws: int, batch: int, seed: int, cfg_scale: float) -> MonteCarlo:
    """Settings of the likelihood. Raises UserError where the batch does not divide the draws."""
    batch = min(batch, draws)
    if draws % batch:
        raise UserError(
            f"{draws} draws do not divide into batches of {batch}",
            f"Give --mc-num {draws // batch * batch}, or --mc-batch 1",
        )
    return MonteCarlo(draws, batch, seed, cfg_scale)


@contextmanager
def one_kind_of_error() -> Iterator[None]:
    """Errors of the decode loop, which has its own class, as ours."""
    try:
        yield
    except RuntimeUserError as error:
        raise UserError(str(error), error.hint) from None


def _own_tasks(subject: str) -> tuple[Path, ...]:
    """Those in the folder of a checkpoint, as the reference models have them."""
    files = tuple(sorted((folder_of(subject) / "tasks").glob("*.jsonl")))
    if not files:
        raise UserError(
            f"No task files for `{subject}`",
            'Name .jsonl files with lines like {"prompt": "2+2=", "answer": "4"}',
        )
    return files


def read_tasks(subject: str, files: Sequence[Path], limit: int | None) -> list[Example]:
    """The first `limit` examples a task of `files`, or of the subject's own. Raises UserError."""
    found = files or _own_tasks(subject)
    return _first([e for file in found for e in read_examples(file)], limit)


def _first(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` of every task."""
    counts: dict[str, int] = {}
    kept = []
    for example in examples:
        counts[example.task] = counts.get(example.task, 0) + 1
        if limit is None or counts[example.task] <= limit:
            kept.append(example)
    return kept
