"""Whole answers, one prompt at a time, as the decode loop of the bundle makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.bench.timing import Spread
from exporter.emit import GATE
from exporter.runtime.bundle import Bundle, ModelFacts
from exporter.runtime.loop import Result, decode
from exporter.runtime.session import Session
from exporter.runtime.settings import Settings
from exporter.runtime.statistics import Clock, Statistics, total
from exporter.runtime.task import make_canvas
from exporter.trajectory import Reference

PROMPT = 16  # random tokens, where a bundle brings no prompts


@dataclass(frozen=True)
class Answers:
    """What decoding some prompts took."""

    tokens_per_second: Spread
    first_token_seconds: float  # median
    forwards: int
    tokens: int


def prompts_of(bundle: Bundle, count: int) -> list[list[int]]:
    """The first held-out prompts of the bundle's gate; without one, random tokens.

    How many calls an answer takes depends on what is asked, with most samplers.
    """
    if (bundle.folder / GATE).is_file():
        return held_out(bundle.folder / GATE)[:count]
    draw = np.random.default_rng(0)
    found = draw.integers(0, bundle.model.vocab_size, (count, PROMPT))
    found[found == bundle.model.mask_id] = bundle.model.pad_id
    return [[int(token) for token in row] for row in found]


def held_out(file: Path) -> list[list[int]]:
    """The prompts of a gate, without their padding."""
    reference = Reference.load(file)
    firsts = reference.key_mask.argmax(1)
    return [
        [int(token) for token in row[first : reference.prompt_length]]
        for row, first in zip(reference.canvases[0], firsts, strict=True)
    ]


def time_answers(
    session: Session, model: ModelFacts, settings: Settings, prompts: Sequence[list[int]],
    rounds: int,
) -> Answers:  # fmt: skip
    """All prompts in each round; one round before that warms up."""
    found = []
    for _ in range(1 + rounds):
        found.append(total([answer(session, model, settings, prompt) for prompt in prompts]))
    last, speeds = found[-1], [one.tokens_per_second for one in found[1:]]
    first = float(np.median(last.first_tokens)) if last.first_tokens else 0.0
    return Answers(Spread.of(speeds), first, last.forwards, last.tokens)


def answer(
    session: Session, model: ModelFacts, settings: Settings, prompt: list[int]
) -> Statistics:
    """One answer; the time of the loop counts, that of starting up does not."""
    canvas, length, key_mask = make_canvas([prompt], settings.gen_length, model)
    result = Result(canvas)
    clock = Clock(session, result, model.mask_id)
    steps = decode(clock.session, model, settings, canvas, length, key_mask, result)
    for _ in clock.timed(steps):
        pass
    return clock.read()
