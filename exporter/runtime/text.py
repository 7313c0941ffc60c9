"""Text to ids and back: tokenizer.json, and the chat template of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "<mask>"  # in a prompt: one token to fill

Message = dict[str, str]  # {"role": "user" or "assistant", "content": text}


class Text:
    """The tokenizer of a bundle."""

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None) -> None:
        """Load FOLDER/tokenizer.json if no tokenizer is given; a `UserError` tells what is missing.

        The chat template comes from the folder in any case.
        """
        self._tokenizer = _load(folder) if tokenizer is None else tokenizer
        self._folder = folder

    def encode(self, prompt: str, mask_id: int, chat: bool) -> list[int]:
        """Ids of a prompt, each `<mask>` one mask id.

        With `chat` a prompt without `<mask>` is put into the chat template, where there is one.
        """
        if chat and BLANK not in prompt and self.has_template():
            return self.encode_chat([{"role": "user", "content": prompt}])
        if BLANK not in prompt:
            return self._ids(prompt, special=True)
        first, *others = prompt.split(BLANK)
        ids = self._opening() + self._ids(first, special=False)
        for part in others:
            ids += [mask_id, *self._ids(part, special=False)]
        return ids

    def has_template(self) -> bool:
        """True where the model has a chat template."""
        return chat_template(self._folder) is not None

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Ids of a conversation in the chat template, which there must be, ready for an answer."""
        template = chat_template(self._folder)
        assert template is not None
        return self._ids(render(template, messages, self._folder), special=False)

    def decode(self, ids: list[int]) -> str:
        """Text of ids without special tokens; cut characters show as U+FFFD."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def piece(self, ids: list[int]) -> str:
        """Text of neighbouring tokens inside of a text, special tokens by their names."""
        piece = str(self._tokenizer.decode(ids, skip_special_tokens=False))
        token = self._tokenizer.id_to_token(ids[0]) or ""
        # SentencePiece drops the space that a text begins with
        return " " + piece if token.startswith("\u2581") and not piece.startswith(" ") else piece

    def _ids(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def _opening(self) -> list[int]:
        """The ids that the tokenizer puts before a text, such as a begin token."""
        plain, whole = self._ids("a", special=False), self._ids("a", special=True)
        return whole[: whole.index(plain[0])] if plain and plain[0] in whole else []


def _load(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"the bundle has no {path.name}", hint="give token ids with --ids")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            "the package tokenizers is not installed",
            hint="pip install tokenizers, or give token ids with --ids",
        ) from error
    return Tokenizer.from_file(str(path))


def chat_template(folder: Path) -> str | None:
    """The Jinja source of the chat template, None where the bundle has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = _config(folder).get("chat_template")
    if isinstance(template, list):  # several named ones
        template = {t["name"]: t["template"] for t in template}.get("default")
    return template


def render(template: str, messages: list[Message], folder: Path) -> str:
    """A conversation, ready for the answer, as transformers renders it."""
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise UserError(
            "the package jinja2 is not installed, and the model has a chat template",
            hint="pip install jinja2, or pass --no-chat-template",
        ) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    config = _config(folder)
    return environment.from_string(template).render(
        messages=messages,
        add_generation_prompt=True,
        bos_token=_token(config.get("bos_token")),
        eos_token=_token(config.get("eos_token")),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _token(entry: str | dict[str, Any] | None) -> str:
    """A token is written as a string or as an object with its content."""
    return str(entry["content"]) if isinstance(entry, dict) else entry or ""


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja2's own escapes HTML


def _refuse(message: str) -> NoReturn:
    raise UserError(f"the chat template refuses the prompt: {message}")
