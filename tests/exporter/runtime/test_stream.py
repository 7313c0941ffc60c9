"""Answers while they come: only what is final, never a part of a character; every commit."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.loop import Result, Step, decode
from exporter.runtime.session import Ints
from exporter.runtime.settings import Settings
from exporter.runtime.statistics import Clock
from exporter.runtime.stream import CommitStream, Stream, TextStream
from exporter.runtime.task import Task, make_canvas, make_task
from exporter.runtime.text import Text
from tests.tiny_bundle import DECODE, EOS, FACTS, MASK, Twin, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "tokenizer"
    write_tokenizer(folder)
    return folder


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffd")))
def test_a_stream_adds_up_and_never_breaks_a_character(folder: Path, text: str) -> None:
    tokenizer = Text(folder)
    if "<|" in text:
        return
    ids = tokenizer.encode(text, MASK, chat=False)
    assert tokenizer.decode(ids) == text
    stream = Stream(tokenizer)
    pieces = [stream.more(ids[:n]) for n in range(len(ids) + 1)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text  # nothing is held back once a character is whole
    assert stream.more(ids, last=True) == ""


def test_a_cut_character_shows_at_the_end_only(folder: Path) -> None:
    tokenizer = Text(folder)
    ids = tokenizer.encode("a€", MASK, chat=False)[:-1]
    stream = Stream(tokenizer)
    assert stream.more(ids) == "a"
    assert stream.more(ids, last=True) == "\ufffd"


def make(given: Settings, prompts: list[list[int]]) -> tuple[Task, Clock]:
    task = make_task(FACTS, given, *make_canvas(prompts, given.gen_length, FACTS))
    return task, Clock(Twin(), Result(task.canvas), MASK)


def steps_of(task: Task) -> Iterator[Step]:
    return decode(Twin(), FACTS, task.settings, task.canvas, task.prompt_length, task.key_mask)


def test_the_text_comes_in_pieces_that_make_the_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Text(folder)
    task, clock = make(replace(DECODE, early_stop=False), [[5, 7]])
    TextStream(text)(task, steps_of(task), clock)
    assert capsys.readouterr().out == text.decode(task.canvas[0, 2:].tolist()) + "\n"


def fake_step(before: Ints, window: list[int], commits: list[tuple[int, int, int]]) -> Step:
    return Step(0, 0, before.copy(), np.asarray(window), commits, {})


def test_text_that_may_still_be_edited_is_held_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sampler that replaces tokens may do so in its block, left of the first mask too."""
    text = Text(folder)
    a, b, c, d = (text.encode(letter, MASK, chat=False)[0] for letter in "abcd")
    seen = []

    def steps(task: Task) -> Iterator[Step]:
        canvas = task.canvas
        for window, values in (([1, 2], [a, MASK]), ([1, 2], [b, c]), ([3, 4], [d, MASK])):
            canvas[0, window] = values
            yield fake_step(canvas, window, [])
            seen.append(capsys.readouterr().out)
        canvas[0, 4] = d

    given = Settings(sampler="llada2-edit", gen_length=4, block_length=2)
    task, clock = make(given, [[5]])
    TextStream(text)(task, steps(task), clock)
    assert seen == ["", "", "bc"]
    assert capsys.readouterr().out == "dd\n"


@pytest.mark.parametrize("named", [True, False])
def test_every_commit_is_printed_in_order(
    folder: Path, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    text = Text(folder) if named else None
    task, clock = make(DECODE, [[5, 7]])
    kept: list[Step] = []

    def steps() -> Iterator[Step]:
        for step in steps_of(task):
            kept.append(step)
            yield step

    CommitStream(text)(task, steps(), clock)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    want = [(s.index, position, token) for s in kept for _, position, token in s.commits]
    assert [(int(line[0]), int(line[1])) for line in lines] == [w[:2] for w in want]
    names = [json.loads(line[2]) for line in lines]
    assert names == [text.piece([token]) if text else token for *_, token in want]


def test_an_edit_is_printed_with_what_stood_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, clock = make(DECODE, [[5]])
    step = replace(fake_step(task.canvas, [1, 2], [(0, 1, 97)]), edits=[(0, 2, 98, EOS)])
    CommitStream(None)(task, iter([step]), clock)
    assert capsys.readouterr().out == f"0\t1\t97\n0\t2\t{EOS}\t98\n"
