"""Questions are read back as written; what cannot be used names its file, line and value."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import UserError
from exporter.evaluation.choices import Question, read_questions

TEXT = st.text(st.characters(blacklist_categories=["Cs"]))
PIECE = TEXT.filter(bool) | st.lists(st.integers(0, 99), min_size=1)


def frozen(piece: str | list[int]) -> str | tuple[int, ...]:
    return piece if isinstance(piece, str) else tuple(piece)


@settings(deadline=None)  # files: slow where others are at work
@given(PIECE, st.lists(PIECE, min_size=1, max_size=4, unique_by=repr), st.data())
def test_any_question_survives(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str | list[int],
    choices: list[str | list[int]],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("any") / "own.jsonl"
    number = data.draw(st.integers(0, len(choices) - 1))
    lines = [
        {"prompt": prompt, "answer": choices[0]},
        {"prompt": prompt, "choices": choices, "answer": number},
        {"prompt": prompt, "choices": choices, "answer": choices[number], "task": "t"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    some = tuple(map(frozen, choices))
    assert read_questions(path) == [
        Question("own", frozen(prompt), some[:1], 0),
        Question("own", frozen(prompt), some, number),
        Question("t", frozen(prompt), some, number),
    ]


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("{prompt}", "not JSON"),
        ("[]", "expected an object"),
        ('{"prompt": "p", "answr": "a"}', "unknown key 'answr'"),
        ('{"answer": "a"}', "`prompt` is neither text nor a list of ids: null"),
        ('{"prompt": "p"}', "an answer is neither text nor a list of ids: null"),
        ('{"prompt": "p", "answer": ""}', "an answer is empty"),
        ('{"prompt": "p", "answer": [1, -1]}', "an answer is neither"),
        ('{"prompt": "p", "answer": [true]}', "an answer is neither"),
        ('{"prompt": "p", "choices": []}', "`choices` is not a list of answers"),
        ('{"prompt": "p", "choices": ["a"], "answer": 1}', "`answer` 1 is none of the 1 choices"),
        ('{"prompt": "p", "choices": ["a"], "answer": "b"}', '`answer` "b" is none of the 1'),
        ('{"prompt": "p", "choices": ["a"]}', "`answer` null is none"),
        ('{"prompt": "p", "answer": "a", "task": 3}', "`task` is not text"),
    ],
)
def test_unusable_line_is_named(tmp_path: Path, line: str, seen: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"prompt": "p", "answer": "a"}}\n\n{line}\n')
    with pytest.raises(UserError, match=rf"bad\.jsonl:3: {seen}") as caught:
        read_questions(path)
    assert '{"prompt": ' in caught.value.hint


def test_unusable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin1.jsonl").write_bytes(b"caf\xe9")
    for name, seen in {
        "empty": "holds no question",
        "latin1": "not UTF-8",
        "no": "No such",
    }.items():
        with pytest.raises(UserError, match=f"{name}.*{seen}"):
            read_questions(tmp_path / f"{name}.jsonl")
