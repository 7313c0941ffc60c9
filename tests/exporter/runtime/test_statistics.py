"""What a run took: counted as it was done, timed without what happens between the steps."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from exporter.runtime.loop import Result, Step, decode
from exporter.runtime.statistics import Clock, Statistics, total
from exporter.runtime.task import make_canvas, make_task
from tests.tiny_bundle import DECODE, FACTS, MASK, Twin

PART = Statistics(2, 10, 1, 4, 3, 2.0, 1.5, (0.5,), (0.5, 0.25, 0.25, 1.0))


def test_a_run_is_counted_and_timed() -> None:
    canvas, length, key_mask = make_canvas([[5, 7], [9]], DECODE.gen_length, FACTS)
    result = Result(canvas)
    clock = Clock(Twin(), result, MASK)
    assert clock.read().forwards == 0 and clock.read().as_json()["step_seconds_max"] is None
    started = time.perf_counter()
    slept = 0.0
    steps = decode(clock.session, FACTS, DECODE, canvas, length, key_mask, result)
    for number, _ in enumerate(clock.timed(steps)):
        if number < 3:
            slept -= time.perf_counter()
            time.sleep(0.01)
            slept += time.perf_counter()
    elapsed = time.perf_counter() - started
    found = clock.read()
    assert (found.prompts, found.tokens, found.edits) == (2, 32, 0)
    assert (found.forwards, found.skipped) == (result.forwards, result.skipped)
    assert len(found.steps) == found.forwards == 16
    assert 0 < found.model_seconds <= found.seconds <= elapsed - slept
    assert max(found.steps) <= found.first_tokens[0] + sum(found.steps[1:]) <= found.seconds


def test_edits_are_no_new_tokens_and_a_mask_put_back_is_one_less() -> None:
    task = make_task(FACTS, DECODE, *make_canvas([[5]], DECODE.gen_length, FACTS))
    clock = Clock(Twin(), Result(task.canvas), MASK)

    def steps() -> Iterator[Step]:
        before = task.canvas.copy()
        yield Step(0, 0, before, np.arange(1, 5), [(0, 1, 65), (0, 2, 66)], {})
        before[0, 1:3] = 65, 66
        yield Step(1, 0, before, np.arange(1, 5), [], {}, edits=[(0, 1, 65, 67)])
        yield Step(2, 0, before, np.arange(1, 5), [], {}, edits=[(0, 2, 66, MASK)])

    assert len(list(clock.timed(steps()))) == 3
    assert (clock.read().tokens, clock.read().edits) == (1, 2)


def test_totals_add_up() -> None:
    both = total([PART, replace(PART, first_tokens=(), steps=(2.0,))])
    assert (both.prompts, both.tokens, both.forwards, both.seconds) == (4, 20, 8, 4.0)
    facts = both.as_json()
    assert facts["host_seconds"] == 1.0
    assert facts["step_seconds_median"] == 0.5 and facts["step_seconds_max"] == 2.0
    assert facts["first_token_seconds"] == 0.5
    assert facts["tokens_per_forward"] == 2.5 and facts["tokens_per_second"] == 5.0
    assert total([]).lines()


def test_readers_get_every_figure() -> None:
    text = "\n".join(PART.lines())
    for value in (
        "4, 3 skipped",
        "10, 1 edits",
        "2.50",
        "5.0",
        "model 1.5 s, host 0.5 s",
        "max 1 s",
    ):
        assert value in text
    assert PART.line() == "4 forwards, 2.00 s, 5.0 tokens/s, 2.50 tokens/forward"


def test_the_time_of_a_forward_that_fails_counts_too() -> None:
    clock = Clock(Twin(), Result(np.zeros((1, 1), np.int64)), MASK)
    with pytest.raises(TypeError):
        clock.session.forward("wrong")
    assert clock.read().model_seconds > 0
