"""Files of prompts: what is read, and what is refused with file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.runtime.errors import UserError
from exporter.runtime.prompt_file import Source, read_prompt_file
from exporter.tasks import read_examples

LINES = st.one_of(
    st.fixed_dictionaries(
        {"prompt": st.text(st.characters(exclude_categories=["Cs"]))},
        optional={"gen_length": st.integers(1, 99), "answer": st.text("ab"), "task": st.text("c")},
    ),
    st.fixed_dictionaries({"ids": st.lists(st.integers(0, 9), min_size=1)}),
)


@given(st.lists(LINES, min_size=1))
def test_it_reads_what_the_tasks_of_the_project_are_written_in(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, object]]
) -> None:
    file = tmp_path_factory.mktemp("file") / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    found = [(s.text, s.ids, s.gen_length) for s in read_prompt_file(file)]
    want = [(None if e.ids else e.prompt, e.ids, e.gen_length) for e in read_examples(file)]
    assert found == want


def test_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffone\r\n\n two\u2028still two \n".encode())
    assert read_prompt_file(file) == [
        Source(f"{file}:1: ", "one"),
        Source(f"{file}:3: ", " two\u2028still two "),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object, saw [1]"),
        ('{"prompt": "a", "max_tokens": 4}', "unknown key 'max_tokens'"),
        ('{"answer": "a"}', "`prompt` or `ids`"),
        ('{"prompt": "a", "ids": [1]}', "`prompt` or `ids`"),
        ('{"prompt": 5}', "`prompt` is not text: 5"),
        ('{"prompt": null}', "`prompt` is not text: null"),
        ('{"ids": []}', "`ids` is not a list of token ids: []"),
        ('{"ids": [1, true]}', "`ids` is not a list"),
        ('{"ids": [1, -1]}', "`ids` is not a list"),
        ('{"ids": "12"}', "`ids` is not a list"),
        ('{"prompt": "a", "gen_length": 1.5}', "`gen_length` is not 0 or more: 1.5"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "good"}\n\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_prompt_file(file)
    assert str(error.value).startswith(f"{file}:3: ") and says in str(error.value)
    assert "a line looks like" in error.value.hint


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.csv", b"a", "neither .jsonl nor .txt"),
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.txt", b"\xff", "not UTF-8 at byte 0"),
        ("p.jsonl", None, "No such file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_prompt_file(tmp_path / name)
    assert name in str(error.value) and error.value.hint
