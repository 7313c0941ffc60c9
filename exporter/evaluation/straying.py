"""How far a model strays from the float model while it decodes.

The measurements of the gate (gate.py), prompt by prompt: free-running, where both decode on their
own; and teacher-forced, where the subject predicts at every state of the float model, and what
counts are the positions that the float model commits there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from exporter.agreement import wilson
from exporter.decoding import plain
from exporter.evaluation.batches import Batch, Item, make_batches
from exporter.evaluation.run_folder import Run
from exporter.evaluation.subject import Subject
from exporter.float_decode import record
from exporter.progress import Progress
from exporter.runtime.answer import answers
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.candidates import wanted
from exporter.runtime.loop import decode
from exporter.runtime.session import Session
from exporter.runtime.task import make_canvas, make_task
from exporter.teacher_forcing import compare
from exporter.trajectory import BINS, TOP

PART = "trajectory"  # file of a run


@dataclass(frozen=True)
class Strayed:
    """One prompt. Lists have an entry a bin of the mask ratio, all masked first."""

    index: int
    task: str
    tokens: int
    equal: int  # tokens of both answers that are the same
    first_divergence: float  # share of the calls before the first that commits otherwise
    positions: list[int]  # committed by the float model
    agreeing: list[int]  # of them, where the subject has the same arg-max
    regret: list[float]  # sums over the positions, see agreement.py
    kl: list[float]


@dataclass(frozen=True)
class Forced:
    """Means over positions; None where there are none."""

    positions: int
    agreement: float | None
    interval: tuple[float, float] | None  # 95 %, Wilson
    regret: float | None  # float probability given up
    kl: float | None  # nats, at least this much


@dataclass(frozen=True)
class Straying:
    """Means over prompts, and over positions in all and by mask ratio."""

    prompts: int
    tokens: int
    token_agreement: float
    exact_match: float
    exact_interval: tuple[float, float]  # 95 %, Wilson
    first_divergence: float  # 1: none diverges
    forced: Forced
    by_mask_ratio: list[Forced]  # from all masked to none


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items, taken from all tasks in turn, in the order of the items."""
    seen: dict[str, int] = {}
    ranked = []
    for item in items:
        rank = seen[item.example.task] = seen.get(item.example.task, -1) + 1
        ranked.append((rank, item.index, item))
    return sorted((item for _, _, item in sorted(ranked)[:count]), key=lambda item: item.index)


def follow(
    subject: Subject, twin: Subject, items: Sequence[Item], rows: int | None, run: Run,
    progress: Progress,
) -> list[Strayed]:  # fmt: skip
    """Every item decoded by the subject and by its float `twin`, without chance and guidance.

    Those that the run has are not made again. `rows` in a batch; None: what memory takes.
    """
    done = run.read(PART, Strayed)
    alike = [replace(item, settings=plain(item.settings)) for item in items]
    batches = make_batches(alike, subject.facts.vocab_size, rows)
    left = [b for b in batches if not all(item.index in done for item in b.items)]
    if not left:
        return run.complete(PART, done, [])
    settings = left[0].settings
    how = False, TOP | wanted(settings), settings.cache != "none"
    session, float_session = subject.open(*how), twin.open(*how)

    with progress.stage("trajectories", len(left)) as step:

        def made() -> Iterator[list[Strayed]]:
            for batch in left:
                yield _follow(subject, session, batch, twin.facts, float_session)
                step()

        return run.complete(PART, done, made())


def straying(lines: Sequence[Strayed]) -> Straying:
    """Sums up at least one prompt."""
    exact = sum(line.equal == line.tokens for line in lines)
    tokens = sum(line.tokens for line in lines)
    sums = [
        (
            sum(line.positions[b] for line in lines),
            sum(line.agreeing[b] for line in lines),
            sum(line.regret[b] for line in lines),
            sum(line.kl[b] for line in lines),
        )
        for b in range(BINS)
    ]
    positions, agreeing, regret, kl = (sum(column) for column in zip(*sums, strict=True))
    return Straying(
        prompts=len(lines),
        tokens=tokens,
        token_agreement=sum(line.equal for line in lines) / tokens,
        exact_match=exact / len(lines),
        exact_interval=wilson(exact, len(lines)),
        first_divergence=float(np.mean([line.first_divergence for line in lines])),
        forced=_forced(int(positions), int(agreeing), regret, kl),
        by_mask_ratio=[_forced(*one) for one in sums],
    )


def _forced(positions: int, agreeing: int, regret: float, kl: float) -> Forced:
    if not positions:
        return Forced(0, None, None, None, None)
    interval = wilson(agreeing, positions)
    return Forced(positions, agreeing / positions, interval, regret / positions, kl / positions)


def _follow(
    subject: Subject,
    session: Session,
    batch: Batch,
    float_facts: ModelFacts,
    float_session: Session,
) -> list[Strayed]:
    facts, settings = subject.facts, batch.settings
    reference = record(float_session, float_facts, settings, batch.prompts, Progress())
    canvas, start, key_mask = make_canvas(batch.prompts, settings.gen_length, facts)
    task = make_task(facts, settings, canvas, start, key_mask)
    trace = [
        (step.index, *commit)
        for step in decode(session, facts, settings, canvas, start, key_mask)
        for commit in step.commits
    ]
    traces = [answer.trace for answer in answers(task, trace)]
    firsts = reference.first_differences(traces)
    equal = (canvas[:, start:] == reference.answer[:, start:]).sum(1)
    agrees, regret, kl = compare(session, facts, reference)
    rows, bins = reference.commits[:, 1], reference.bins()
    found = []
    for row, item in enumerate(batch.items):
        inside = [(rows == row) & (bins == b) for b in range(BINS)]
        found.append(
            Strayed(
                index=item.index,
                task=item.example.task,
                tokens=settings.gen_length,
                equal=int(equal[row]),
                first_divergence=firsts[row],
                positions=[int(which.sum()) for which in inside],
                agreeing=[int(agrees[which].sum()) for which in inside],
                regret=[float(regret[which].sum()) for which in inside],
                kl=[float(kl[which].sum()) for which in inside],
            )
        )
    return found
