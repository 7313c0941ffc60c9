"""Answers are those of the emitted loop, whatever a prompt is decoded together with."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from exporter.errors import UserError
from exporter.evaluation.batches import make_batches
from exporter.evaluation.generation import PART, Answer, Outcome, decode_batch, generate, open_for
from exporter.evaluation.items import make_items
from exporter.evaluation.run_folder import Run
from exporter.evaluation.subject import Subject
from exporter.progress import Progress
from exporter.runtime.command import main as decode_command
from exporter.runtime.session import Session
from exporter.tasks import Example

GIVENS = [
    {},
    {"steps": 4},
    {"sampler": "threshold", "threshold": 0.3},
    {"sampler": "entropy", "steps": 5},
    {"cfg_scale": 0.5},
    {"early_stop": False},
]


def answers_of(
    subject: Subject, examples: list[Example], given: dict[str, object], rows: int | None
) -> dict[int, Answer]:
    batches = make_batches(make_items(subject, examples, given, True), 264, rows)
    session = open_for(subject, batches)
    return {
        item.index: answer
        for batch in batches
        for item, answer in zip(
            batch.items, decode_batch(subject, session, batch, lambda: None), strict=True
        )
    }


@pytest.mark.parametrize("given", GIVENS)
def test_answers_do_not_depend_on_the_batch(
    tiny: Subject, examples: list[Example], given: dict[str, object]
) -> None:
    alone = answers_of(tiny, examples, given, 1)
    assert alone == answers_of(tiny, examples, given, None) == answers_of(tiny, examples, given, 3)
    assert len({answer.text for answer in alone.values()}) > 1


@pytest.mark.parametrize("given", GIVENS)
def test_answers_are_those_of_the_bundle(
    tiny: Subject,
    tiny_folder: Path,
    examples: list[Example],
    given: dict[str, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = answers_of(tiny, examples[:4], given, None)
    for index, example in enumerate(examples[:4]):
        length = str(example.gen_length)
        options = ["--prompt", example.prompt, "--json", "--gen-length", length]
        for name, value in given.items():
            flag = f"--{name.replace('_', '-')}"
            options += ["--no-early-stop"] if name == "early_stop" else [flag, str(value)]
        assert decode_command(tiny_folder, options) == 0
        printed = json.loads(capsys.readouterr().out)
        answer = found[index]
        assert answer.forwards == printed["forwards"]
        if given.get("early_stop", True):
            assert (answer.text, answer.tokens) == (printed["text"], len(printed["new"]))
        else:
            assert printed["text"].startswith(answer.text)


def test_every_call_is_told(tiny: Subject, examples: list[Example]) -> None:
    batches = make_batches(make_items(tiny, examples, {}, True), 264, 4)
    session = open_for(tiny, batches)
    for batch in batches:
        calls: list[int] = []
        decode_batch(tiny, session, batch, partial(calls.append, 1))
        assert len(calls) == batch.settings.gen_length


def test_without_a_tokenizer_the_text_is_ids(tiny: Subject) -> None:
    example = Example("t", ids=(5, 7))
    (with_text,) = answers_of(tiny, [example], {}, None).values()
    (with_ids,) = answers_of(replace(tiny, text=None), [example], {}, None).values()
    ids = [int(part) for part in with_ids.text.split(",")]
    assert tiny.text is not None and tiny.text.decode(ids) == with_text.text


def test_blanks_of_a_prompt_are_part_of_the_answer(tiny: Subject) -> None:
    (answer,) = answers_of(tiny, [Example("t", "a<mask>c")], {"gen_length": 0}, None).values()
    assert answer.text[0] + answer.text[-1] == "ac" and answer.tokens == 0
    assert answer.forwards == 1


def test_right_wrong_and_unasked(tiny: Subject, tmp_path: Path) -> None:
    (text,) = (a.text for a in answers_of(tiny, [Example("t", "sun")], {}, None).values())
    examples = [Example("t", "sun", answer) for answer in (text, text + "!", None)]
    batches = make_batches(make_items(tiny, examples, {}, True), 264)
    found = generate(tiny, batches, Run(tmp_path, {}), False, Progress())
    assert [outcome.correct for outcome in found] == [True, False, None]
    assert [json.loads(line) for line in (tmp_path / f"{PART}.jsonl").open()] == [
        vars(outcome) for outcome in found
    ]


def test_programs_are_not_run_unasked(tiny: Subject, tmp_path: Path) -> None:
    examples = [Example("t", "sun", "pass", match="code")]
    batches = make_batches(make_items(tiny, examples, {}, True), 264)
    with pytest.raises(UserError, match="programs"):
        generate(tiny, batches, Run(tmp_path, {}), False, Progress())


def test_a_run_that_was_cut_anywhere_ends_as_if_it_had_not(
    tiny: Subject, examples: list[Example], tmp_path: Path
) -> None:
    """Random draws too: they go by the row, so batches are made as a whole."""
    given = {"temperature": 1.0, "steps": 4}
    batches = make_batches(make_items(tiny, examples, given, True), 264, 3)
    run, file = Run(tmp_path, {}), tmp_path / f"{PART}.jsonl"
    first = generate(tiny, batches, run, False, Progress())
    whole = file.read_bytes()
    assert whole.count(b"\n") == len(examples)
    for cut in range(0, len(whole), 97):
        file.write_bytes(whole[:cut])
        assert generate(tiny, batches, run, False, Progress()) == first
        assert file.read_bytes() == whole


def test_what_is_done_is_not_done_again(
    tiny: Subject, examples: list[Example], tmp_path: Path
) -> None:
    batches = make_batches(make_items(tiny, examples, {}, True), 264, 3)
    run = Run(tmp_path, {})
    first = generate(tiny, batches, run, False, Progress())

    def closed(guided: bool, wanted: frozenset[str], cached: bool) -> Session:
        raise AssertionError("nothing is left to decode")

    assert generate(replace(tiny, open=closed), batches, run, False, Progress()) == first
    assert all(isinstance(outcome, Outcome) for outcome in first)
