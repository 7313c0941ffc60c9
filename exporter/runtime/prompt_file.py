"""Prompts from a file: `.jsonl` with an object a line, or `.txt` with a prompt a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError

FIELDS = ("prompt", "ids", "gen_length")
KNOWN = (*FIELDS, "answer", "task", "match")  # files of tasks have these too
HINT = 'a line looks like {"prompt": "2+2="} or {"ids": [5, 7, 9], "gen_length": 32}'


@dataclass(frozen=True)
class Source:
    """A prompt as it was given: a text, or ids where that is None."""

    where: str  # for errors: "FILE:LINE: ", or empty
    text: str | None
    ids: tuple[int, ...] = ()
    gen_length: int | None = None


def read_prompt_file(path: Path) -> list[Source]:
    """All prompts of a file; empty lines are skipped. Raises `UserError` with file and line."""
    if path.suffix not in (".jsonl", ".txt"):
        raise UserError(f"{path} is neither .jsonl nor .txt", hint="rename it to say which it is")
    sources = [
        _from_text(line, where) if path.suffix == ".txt" else _from_json(line, where)
        for number, line in enumerate(_lines(path), start=1)
        if line.strip() and (where := f"{path}:{number}: ")
    ]
    if not sources:
        raise UserError(f"{path} holds no prompt", hint="write one prompt a line")
    return sources


def _lines(path: Path) -> list[str]:
    try:
        # not splitlines(): JSON may hold U+2028 and its like as they are
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start}", hint="save the file as UTF-8 text"
        ) from error


def _from_text(line: str, where: str) -> Source:
    return Source(where, line)


def _from_json(line: str, where: str) -> Source:
    def wrong(seen: str) -> UserError:
        return UserError(where + seen, HINT)

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise wrong(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise wrong(f"expected an object, saw {line.strip()[:60]}")
    if unknown := sorted(fields.keys() - set(KNOWN)):
        raise wrong(f"unknown key {unknown[0]!r}, known are {', '.join(KNOWN)}")
    text, ids, length = (fields.get(name) for name in FIELDS)
    if ("prompt" in fields) == ("ids" in fields):
        raise wrong("expected `prompt` or `ids`, one of them")
    if "prompt" in fields and not isinstance(text, str):
        raise wrong(f"`prompt` is not text: {json.dumps(text)[:60]}")
    if "ids" in fields and not (isinstance(ids, list) and ids and all(map(_is_count, ids))):
        raise wrong(f"`ids` is not a list of token ids: {json.dumps(ids)[:60]}")
    if length is not None and not _is_count(length):
        raise wrong(f"`gen_length` is not 0 or more: {json.dumps(length)[:60]}")
    return Source(where, text, tuple(ids or ()), length)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
