"""Prompts of a run: taken from the command line, a file or stdin, as ids, checked, in batches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundle import Bundle, ModelFacts
from .errors import UserError
from .options import settings_from
from .prompt_file import Source, read_prompt_file
from .settings import Settings
from .task import make_canvas, make_task
from .text import Text


@dataclass(frozen=True)
class Prompt:
    """A prompt that can be decoded."""

    index: int  # in the order in which they were given
    ids: list[int]
    settings: Settings  # its own gen_length included


def given_prompts(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Source]:
    """What --prompt, --ids and --file name, else the text on stdin."""
    given: list[str | list[int]] = args.prompts or []
    sources = [
        Source("", prompt) if isinstance(prompt, str) else Source("", None, tuple(prompt))
        for prompt in given
    ]
    if args.file is not None:
        sources += read_prompt_file(Path(args.file))
    return sources or [Source("", _from_stdin(parser))]


def _from_stdin(parser: argparse.ArgumentParser) -> str:
    if sys.stdin is None or sys.stdin.isatty():
        parser.error("give --prompt TEXT, --ids 5,7,9, --file FILE, or text on stdin")
    return sys.stdin.read().rstrip("\r\n")  # what `echo` adds is no part of the prompt


def prepare(
    sources: Sequence[Source], args: argparse.Namespace, bundle: Bundle, text: Text | None
) -> list[Prompt]:
    """The prompts with their settings; a `UserError` tells which one cannot be decoded."""
    prompts = []
    for index, source in enumerate(sources):
        try:
            settings = settings_from(args, bundle.decode, source.gen_length)
            ids = _encode(source, args, bundle.model, text)
            check(ids, settings, bundle.model)
        except UserError as error:
            raise UserError(source.where + str(error), error.hint) from error
        prompts.append(Prompt(index, ids, settings))
    return prompts


def _encode(
    source: Source, args: argparse.Namespace, model: ModelFacts, text: Text | None
) -> list[int]:
    if source.text is None:
        return list(source.ids)
    assert text is not None
    return text.encode(source.text, model.mask_id, chat=not args.no_chat_template)


def check(prompt: list[int], settings: Settings, model: ModelFacts) -> None:
    """Raises `UserError` for a prompt that the model cannot take, or not with these settings."""
    wrong = [i for i in prompt if not 0 <= i < model.vocab_size and i != model.mask_id]
    if wrong:
        raise UserError(
            f"id {wrong[0]} is not in the vocabulary of {model.vocab_size}",
            hint=f"give ids from 0 to {model.vocab_size - 1}",
        )
    canvas = make_canvas([prompt], settings.gen_length, model)
    if canvas[0].shape[1] > model.max_length:
        raise UserError(
            f"a prompt of {len(prompt)} tokens and gen_length {settings.gen_length} are more"
            f" than the {model.max_length} that the model takes",
            hint="shorten the prompt or give a smaller --gen-length",
        )
    if not settings.gen_length and model.mask_id not in prompt:
        raise UserError(
            "gen_length 0 and no blank in the prompt: nothing to decode",
            hint=f"give --gen-length, or <mask> or id {model.mask_id} in the prompt",
        )
    make_task(model, settings, *canvas)


def batches(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """At most `size` prompts each; only such with equal settings are decoded together."""
    groups: dict[Settings, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.settings, []).append(prompt)
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]
