"""What is written is read back; what cannot be used names its file, line and value."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UserError
from exporter.tasks import Example, is_correct, read_examples

TEXT = st.text(st.characters(blacklist_categories=["Cs"]))


@given(prompts=st.lists(TEXT, min_size=1))
def test_any_text_survives_jsonl(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "own.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_examples(path) == [Example("own", prompt=text) for text in prompts]


def test_all_fields_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        '{"task": "t", "prompt": "p", "answer": "1+2", "gen_length": 4, "match": "sum"}\n'
        "\n"
        '{"ids": [5, 0, 9]}\n'
    )
    full = Example("t", prompt="p", answer="1+2", gen_length=4, match="sum")
    assert read_examples(path) == [full, Example("mixed", ids=(5, 0, 9))]


def test_text_file_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_bytes("\ufeffWhat is 2+2?\r\n\r\n  indented\r\n".encode())
    examples = read_examples(path)
    assert examples == [Example("own", prompt="What is 2+2?"), Example("own", prompt="  indented")]


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("{prompt}", "not JSON"),
        ('["p"]', r'expected an object, saw \["p"\]'),
        ("{}", "saw no keys"),
        ('{"prompt": "p", "ids": [1]}', "expected `prompt` or `ids`, one of them, saw ids, prompt"),
        ('{"prompt": "p", "answr": "a"}', "unknown key 'answr', known are prompt, ids, answer"),
        ('{"prompt": 3}', "`prompt` is not text: 3"),
        ('{"prompt": "p", "gen_length": 0}', "`gen_length` is not 1 or more: 0"),
        ('{"prompt": "p", "gen_length": true}', "`gen_length` is not 1 or more: true"),
        ('{"ids": []}', r"`ids` is not a list of token ids: \[\]"),
        ('{"ids": [1, -1]}', r"`ids` is not a list of token ids: \[1, -1\]"),
        ('{"ids": [1, 2.0]}', r"`ids` is not a list of token ids: \[1, 2\.0\]"),
        ('{"prompt": "p", "match": "fuzzy"}', '`match` is "fuzzy", known are exact, sum'),
        ('{"prompt": "p", "match": []}', r"`match` is \[\], known are exact, sum"),
        (
            '{"prompt": "p", "answer": "x", "match": "sum"}',
            '`answer` "x" does not fit `match` "sum"',
        ),
        (
            '{"prompt": "p", "answer": "x", "match": "numeric"}',
            '"x" does not fit `match` "numeric"',
        ),
        ('{"prompt": "p", "answer": "(", "match": "regex"}', r'"\(" does not fit `match` "regex"'),
        ('{"prompt": "p", "answer": "def", "match": "code"}', '"def" does not fit `match` "code"'),
    ],
)
def test_unusable_line_is_named(tmp_path: Path, line: str, seen: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match=rf"bad\.jsonl:2: .*{seen}") as caught:
        read_examples(path)
    assert '{"prompt": ' in caught.value.hint


def test_unusable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    for name, seen in {
        "empty.txt": "holds no example",
        "data.csv": "neither .jsonl nor .txt",
        "latin1.txt": "not UTF-8 at byte 3",
        "absent.txt": "No such file",
    }.items():
        with pytest.raises(UserError, match=f"{name}.*{seen}"):
            read_examples(tmp_path / name)


def test_correctness_needs_an_answer() -> None:
    assert is_correct(Example("t", "p", "a"), "a")
    assert not is_correct(Example("t", "p", "a"), "b")
    with pytest.raises(ValueError, match="'p' of 't' has no answer"):
        is_correct(Example("t", "p"), "a")


def test_programs_run_only_where_that_is_allowed() -> None:
    example = Example("t", "p", "assert double(2) == 4", match="code")
    with pytest.raises(UserError, match="`t` are programs") as caught:
        is_correct(example, "def double(x): return 2 * x")
    assert "--allow-code" in caught.value.hint
    assert is_correct(example, "def double(x): return 2 * x", allow_code=True)
    assert not is_correct(example, "def double(x): return 3 * x", allow_code=True)
