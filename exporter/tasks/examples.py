"""Prompts with what is known of their answers, read from `.jsonl` and `.txt` files."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from exporter.errors import UserError
from exporter.tasks.matching import Match, answers, last_number

KEYS = ("prompt", "ids", "answer", "task", "gen_length", "match")


@dataclass(frozen=True)
class Example:
    """One prompt, as text or, where the file has token ids instead, in `ids`."""

    task: str  # what it counts under in a report
    prompt: str = ""
    answer: str | None = None  # None: nothing to check
    gen_length: int | None = None  # tokens to generate; None: as the bundle or the user says
    match: Match = "exact"
    ids: tuple[int, ...] = ()


def is_correct(example: Example, text: str, allow_code: bool = False) -> bool:
    """Whether the decoded `text` (up to the end token) answers `example`, which has an answer.

    Raises UserError where that takes running the text as a program and `allow_code` is False.
    """
    if example.answer is None:
        raise ValueError(f"the example {example.prompt!r} of {example.task!r} has no answer")
    check_code(example, allow_code)
    return answers(example.match, example.prompt, example.answer, text)


def check_code(example: Example, allowed: bool) -> None:
    """Raises UserError where a program would have to be run that is not `allowed` to."""
    if example.match == "code" and not allowed:
        raise UserError(
            f"Answers of `{example.task}` are programs, and running a model's programs is a risk",
            "Allow it with --allow-code: they run shut in, see exporter/tasks/sandbox.py",
        )


def read_examples(path: Path) -> list[Example]:
    """All examples of a `.jsonl` file (one object a line) or a `.txt` file (one prompt a line).

    An object has either `prompt` (text) or `ids` (token ids), and may have `answer`, `task` (the
    file's name where absent), `gen_length` and `match`. Empty lines are skipped. Raises UserError
    with file and line.
    """
    lines = _lines(path)
    if path.suffix == ".txt":
        examples = [Example(path.stem, prompt=line) for line in lines if line.strip()]
    elif path.suffix == ".jsonl":
        numbered = enumerate(lines, start=1)
        examples = [_parse(line, path, number) for number, line in numbered if line.strip()]
    else:
        raise UserError(f"`{path}` is neither .jsonl nor .txt", "Rename it to say which it is")
    if not examples:
        raise UserError(f"`{path}` holds no example", "Write one prompt a line")
    return examples


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): a prompt may hold U+2028 and its like, which JSON does not escape.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}", "Check the path") from error
    except UnicodeDecodeError as error:
        reason = f"`{path}` is not UTF-8 at byte {error.start}"
        raise UserError(reason, "Save the file as UTF-8 text") from error


def _parse(line: str, path: Path, number: int) -> Example:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise _wrong(path, number, f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _wrong(path, number, f"expected an object, saw {_short(fields)}")
    _check(fields, path, number)
    example = Example(
        task=fields.get("task", path.stem),
        prompt=fields.get("prompt", ""),
        answer=fields.get("answer"),
        gen_length=fields.get("gen_length"),
        match=fields.get("match", "exact"),
        ids=tuple(fields.get("ids", ())),
    )
    if example.answer is not None and not _is_usable(example, example.answer):
        seen = f"`answer` {_short(example.answer)} does not fit `match` {_short(example.match)}"
        raise _wrong(path, number, seen)
    return example


def _is_usable(example: Example, answer: str) -> bool:
    """Whether `answer` can be matched with: it is right itself, or a pattern, or a program."""
    try:
        if example.match == "regex":
            re.compile(answer)
        elif example.match == "code":
            ast.parse(answer)
        elif example.match == "numeric":
            return last_number(answer) is not None
        else:
            return is_correct(example, answer)
    except (re.error, SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False
    return True


def _check(fields: dict[str, object], path: Path, number: int) -> None:
    """Raises UserError for the first field of a line that cannot be used."""
    unknown = sorted(fields.keys() - set(KEYS))
    if unknown:
        raise _wrong(path, number, f"unknown key {unknown[0]!r}, known are {', '.join(KEYS)}")
    if ("prompt" in fields) == ("ids" in fields):
        seen = ", ".join(sorted(fields)) or "no keys"
        raise _wrong(path, number, f"expected `prompt` or `ids`, one of them, saw {seen}")
    for key in ("prompt", "answer", "task"):
        if key in fields and not isinstance(fields[key], str):
            raise _wrong(path, number, f"`{key}` is not text: {_short(fields[key])}")
    if "gen_length" in fields and not _is_count(fields["gen_length"], least=1):
        raise _wrong(path, number, f"`gen_length` is not 1 or more: {_short(fields['gen_length'])}")
    if "ids" in fields and not _are_ids(fields["ids"]):
        raise _wrong(path, number, f"`ids` is not a list of token ids: {_short(fields['ids'])}")
    if fields.get("match", "exact") not in get_args(Match):
        known = ", ".join(get_args(Match))
        raise _wrong(path, number, f"`match` is {_short(fields['match'])}, known are {known}")


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_count(i, least=0) for i in value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(path: Path, number: int, seen: str) -> UserError:
    hint = 'A line looks like {"prompt": "2+2=", "answer": "4"} or {"ids": [5, 7, 9]}'
    return UserError(f"{path}:{number}: {seen}", hint)
