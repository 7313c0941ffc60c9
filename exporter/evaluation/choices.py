"""Prompts with answers whose likelihood is asked for, read from `.jsonl` files."""

import json
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import UserError

KEYS = ("prompt", "answer", "choices", "task")
Piece = str | tuple[int, ...]  # text, or token ids


@dataclass(frozen=True)
class Question:
    """A prompt and its possible answers; of a single one only the likelihood is of interest."""

    task: str
    prompt: Piece
    choices: tuple[Piece, ...]
    answer: int  # which of the choices is right


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, an object a line.

    `prompt` and `answer` are text or lists of token ids; with `choices`, `answer` is one of these
    or its number from 0. A choice is encoded on its own: what joins it to the prompt, such as a
    space, is part of it. Raises UserError with file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}", "Check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"`{path}` is not UTF-8", "Save the file as UTF-8 text") from None
    numbered = enumerate(lines, start=1)
    found = [_parse(line, path, number) for number, line in numbered if line.strip()]
    if not found:
        raise UserError(f"`{path}` holds no question", "Write one object a line")
    return found


def _parse(line: str, path: Path, number: int) -> Question:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise _wrong(path, number, f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _wrong(path, number, "expected an object")
    unknown = sorted(fields.keys() - set(KEYS))
    if unknown:
        raise _wrong(path, number, f"unknown key {unknown[0]!r}, known are {', '.join(KEYS)}")
    given = fields.get("choices", [fields.get("answer")])
    if not isinstance(given, list) or not given:
        raise _wrong(path, number, "`choices` is not a list of answers")
    choices = [_piece(choice, "an answer", path, number) for choice in given]
    if not all(choices):
        raise _wrong(path, number, "an answer is empty")
    task = fields.get("task", path.stem)
    if not isinstance(task, str):
        raise _wrong(path, number, "`task` is not text")
    prompt = _piece(fields.get("prompt"), "`prompt`", path, number)
    right = _right(fields, choices, path, number) if "choices" in fields else 0
    return Question(task, prompt, tuple(choices), right)


def _piece(value: object, what: str, path: Path, number: int) -> Piece:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(i) is int and i >= 0 for i in value):
        return tuple(value)
    raise _wrong(
        path, number, f"{what} is neither text nor a list of ids: {json.dumps(value)[:60]}"
    )


def _right(fields: dict[str, object], choices: list[Piece], path: Path, number: int) -> int:
    answer = fields.get("answer")
    if type(answer) is int and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str | list):
        piece = answer if isinstance(answer, str) else tuple(answer)
        if piece in choices:
            return choices.index(piece)
    seen = json.dumps(answer)[:60]
    raise _wrong(path, number, f"`answer` {seen} is none of the {len(choices)} choices")


def _wrong(path: Path, number: int, seen: str) -> UserError:
    return UserError(
        f"{path}:{number}: {seen}",
        'A line looks like {"prompt": "2+2=", "answer": "4"} or'
        ' {"prompt": "2+2=", "choices": ["3", "4"], "answer": 1}',
    )
