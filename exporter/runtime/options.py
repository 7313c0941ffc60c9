"""The command line of a bundle: one option for each field of `Settings`, and what surrounds it."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from .settings import BLOCK_SAMPLERS, CACHES, CANVAS_SAMPLERS, Settings


def make_parser(defaults: Settings, prog: str | None) -> argparse.ArgumentParser:
    """The parser; options of `Settings` that are not given are None, help shows `defaults`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Decode text with this bundle. Prompts: --prompt, --ids, or text on stdin.",
    )
    _add_prompts(parser)
    _add_settings(parser.add_argument_group("decoding"), defaults)
    _add_output(parser)
    return parser


def settings_from(args: argparse.Namespace, defaults: Settings) -> Settings:
    """`defaults` with what was given; the default block is cut to a shorter generated region."""
    names = [field.name for field in fields(Settings)]
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    length = given.get("gen_length", defaults.gen_length)
    if "block_length" not in given and length:
        given["block_length"] = min(defaults.block_length, length)
    return replace(defaults, **given)


def parse_ids(text: str) -> list[int]:
    """`5,7,9` as a list; may be empty."""
    return [int(part) for part in text.split(",")] if text.strip() else []


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt",
        dest="prompts",
        action="append",
        metavar="TEXT",
        help="prompt, <mask> = one token to fill; repeatable",
    )
    parser.add_argument(
        "--ids",
        dest="prompts",
        action="append",
        metavar="5,7,9",
        type=parse_ids,
        help="prompt as token ids; repeatable",
    )
    parser.add_argument(
        "--no-chat-template", action="store_true", help="take --prompt without the chat template"
    )


def _add_settings(group: argparse._ArgumentGroup, defaults: Settings) -> None:
    def add(name: str, kind: type, text: str, choices: tuple[str, ...] | None = None) -> None:
        default = getattr(defaults, name)
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            choices=choices,
            metavar=None if choices else kind.__name__.upper(),
            help=f"{text} (default: {'none' if default is None else default})",
        )

    def switch(name: str, text: str) -> None:
        group.add_argument(
            "--" + name.replace("_", "-"),
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"{text} (default: {'on' if getattr(defaults, name) else 'off'})",
        )

    add("sampler", str, "rule that commits tokens", BLOCK_SAMPLERS + CANVAS_SAMPLERS)
    add("cache", str, "reuse of keys and values", CACHES)
    add("gen_length", int, "tokens to generate; 0 fills only the blanks of the prompt")
    add("steps", int, "model calls for them; none = one a token")
    add("block_length", int, "tokens of a block (block samplers)")
    add("threshold", float, "probability that commits (threshold)")
    add("factor", float, "how many commit at once (factor)")
    add("cfg_scale", float, "classifier-free guidance, 0 = off")
    add("eps", float, "last time of the schedule (canvas samplers)")
    add("temperature", float, "of the draws, 0 = arg-max")
    add("top_k", int, "draw among the K best")
    add("top_p", float, "draw among the best with this mass")
    add("alg_temp", float, "draw the positions too, at this temperature (canvas samplers)")
    add("seed", int, "of the random numbers")
    switch("early_stop", "stop once the answer has ended")
    switch("eos_inf", "never predict the end-of-text token")
    switch("confidence_eos_inf", "commit end-of-text and end-of-turn tokens last")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output and runtime")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("--no-stream", action="store_true", help="print the text at the end only")
    group.add_argument("--threads", type=_positive, metavar="INT", help="CPU threads")
    group.add_argument(
        "--accuracy-level",
        type=int,
        choices=range(5),
        help="arithmetic of quantized products: 0 as the weights, 4 8-bit activations",
    )
    group.add_argument("--provider", metavar="NAME", help="ONNX Runtime provider, such as cuda")
    group.add_argument("--verbose", action="store_true", help="show tracebacks")
