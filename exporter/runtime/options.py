"""The command line of a bundle: one option for each field of `Settings`, and what surrounds it."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from .samplers import SAMPLERS
from .settings import BLOCK_SAMPLERS, CACHES, CANVAS_SAMPLERS, Settings


def make_parser(defaults: Settings, prog: str | None) -> argparse.ArgumentParser:
    """The parser; options of `Settings` that are not given are None, help shows `defaults`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Decode text with this bundle. Prompts: --prompt, --ids, --file, or text on"
        " stdin; or talk with it: --chat.",
    )
    _add_prompts(parser)
    _add_settings(parser.add_argument_group("decoding"), defaults)
    _add_output(parser)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The options; those that exclude each other end in a message about usage.

    `stream` becomes what to do: text, commits or none; `live` whether answers are shown while they
    are decoded.
    """
    args = parser.parse_args(argv)
    one = args.watch is not None or args.stream in ("text", "commits")  # shows one prompt at a time
    if args.json and one:
        parser.error("--json prints whole answers: drop --stream or --watch")
    if args.batch > 1 and one:
        parser.error("--stream and --watch show one prompt at a time: drop --batch")
    if args.watch is not None and args.stream is not None:
        parser.error("--watch and --stream exclude each other")
    if args.chat and (args.json or args.prompts or args.file or args.batch > 1):
        parser.error("--chat reads what you type: drop --json, --prompt, --ids, --file, --batch")
    if args.stream is None:
        args.stream = "none" if args.json or args.batch > 1 or args.watch is not None else "text"
    args.live = args.stream != "none" or args.watch is not None
    return args


def settings_from(
    args: argparse.Namespace, defaults: Settings, gen_length: int | None = None
) -> Settings:
    """`defaults` with what was given; the default block is cut to a shorter generated region.

    `gen_length` is a prompt's own, which an option overrides.
    """
    names = [field.name for field in fields(Settings)]
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if gen_length is not None:
        given.setdefault("gen_length", gen_length)
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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


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
        "--file",
        metavar="FILE",
        help='prompts: .txt with one a line, or .jsonl with {"prompt": TEXT} or {"ids": [5, 7, 9]},'
        " and gen_length where it differs",
    )
    parser.add_argument(
        "--batch",
        type=_positive,
        default=1,
        metavar="INT",
        help="prompts that are decoded together (default: 1)",
    )
    parser.add_argument(
        "--no-chat-template", action="store_true", help="take --prompt without the chat template"
    )


def _add_settings(group: argparse._ArgumentGroup, defaults: Settings) -> None:
    def add(name: str, kind: type, text: str, choices: tuple[str, ...] | None = None) -> None:
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            choices=choices,
            metavar=None if choices else kind.__name__.upper(),
            help=f"{text}{_samplers_of(name)} (default: {_default_of(name, defaults)})",
        )

    def switch(name: str, text: str) -> None:
        group.add_argument(
            "--" + name.replace("_", "-"),
            action=argparse.BooleanOptionalAction,
            default=None,
            help=f"{text}{_samplers_of(name)}"
            f" (default: {'on' if getattr(defaults, name) else 'off'})",
        )

    add("sampler", str, "rule that commits tokens", BLOCK_SAMPLERS + CANVAS_SAMPLERS)
    add("cache", str, "keys and values kept: exact for block-causal models, prefix or dual", CACHES)
    add("gen_length", int, "tokens to generate; 0 fills only the blanks of the prompt")
    add("steps", int, "model calls for them, or for a block of sdar, llada2; none = one a token")
    add("block_length", int, "tokens of a block, for all but the samplers of a whole canvas")
    add("threshold", float, "probability that commits")
    add("low_threshold", float, "probability that commits among surer tokens, or that is unsure")
    add("radius", int, "positions around a sure token that the low threshold is for")
    add("factor", float, "how many commit at once")
    add("gamma", float, "entropy in nats that tokens of one call may have together")
    add("editing_threshold", float, "probability that replaces a token of the block")
    add("keep_threshold", float, "probability that a token of the block needs to stand")
    add("max_post_steps", int, "model calls that only edit, for a block")
    add("num_to_transfer", int, "tokens to commit a call at least")
    add("minimal_topk", int, "tokens to commit a call at least, where steps are more")
    add("sub_block_length", int, "tokens of a part of a block")
    add("max_forwards", int, "model calls at most, one a block at least; the last fills the rest")
    add("initial_length", int, "tokens that an answer starts with; --gen-length is the most")
    add("growth", int, "tokens that it grows by at the end, or that an unsure one becomes")
    add("eos_threshold", float, "mean probability of the end-of-text token that is end enough")
    add("eos_window", int, "tokens at the end that this mean is over")
    add("credit_alpha", float, "weight of credit in logits")
    add("credit_beta", float, "what is left of credit after a call")
    add("credit_gamma", float, "power of the probability that credit grows by")
    add("cfg_scale", float, "classifier-free guidance, 0 = off")
    add("eps", float, "last time of the schedule")
    add("temperature", float, "of the draws, 0 = arg-max")
    add("top_k", int, "draw among the K best")
    add("top_p", float, "draw among the best with this mass")
    add("alg_temp", float, "draw the positions too, at this temperature")
    add("seed", int, "of the random numbers")
    switch("early_stop", "stop once the answer has ended")
    switch("eos_early_stop", "and do not wait for the end of the block")
    switch("early_commit", "fill the answer at once when all of it is sure")
    switch("eos_inf", "never predict the end-of-text token")
    switch("confidence_eos_inf", "commit end-of-text and end-of-turn tokens last")
    _add_constraints(group)


def _add_constraints(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--allow-ids", type=Path, metavar="FILE", help="predict only the token ids in FILE"
    )
    group.add_argument(
        "--forbid-ids", type=Path, metavar="FILE", help="predict none of the token ids in FILE"
    )


def _default_of(name: str, defaults: Settings) -> str:
    """What the option is where it is not given, as help shows it."""
    value = getattr(defaults, name)
    if value is None and name in defaults.rule.limits:
        value = defaults.rule.limits[name]
    return "none" if value is None else str(value)


def _samplers_of(name: str) -> str:
    """The samplers that read a setting which not all do, with their own numbers."""
    if name == "block_length":
        return ""
    reads = {n: row.limits.get(name) for n, row in SAMPLERS.items() if name in row.reads}
    if name == "eos_early_stop":
        reads = {n: None for n, row in SAMPLERS.items() if row.finishes and not row.revises}
    listed = ", ".join(n if limit is None else f"{n} {limit:g}" for n, limit in reads.items())
    return f" ({listed})" if listed else ""


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output and runtime")
    group.add_argument("--json", action="store_true", help="print a JSON object a prompt, in lines")
    group.add_argument(
        "--stream",
        choices=("text", "commits", "none"),
        help="print the text as it becomes final, every commit (step, position, token), or the"
        " text at the end (default: text for one prompt at a time)",
    )
    group.add_argument(
        "--no-stream", dest="stream", action="store_const", const="none", help="--stream none"
    )
    group.add_argument(
        "--watch",
        nargs="?",
        const=0.1,
        type=_seconds,
        metavar="SECONDS",
        help="draw the canvas on the terminal while it is unmasked, each step for at least SECONDS"
        " (0.1)",
    )
    group.add_argument("--stats", action="store_true", help="print forwards and times to stderr")
    group.add_argument("--chat", action="store_true", help="talk: a conversation on the terminal")
    group.add_argument("--threads", type=_positive, metavar="INT", help="CPU threads")
    group.add_argument(
        "--accuracy-level",
        type=int,
        choices=range(5),
        help="of quantized products by standard operators: 0 as the weights, 4 8-bit activations",
    )
    group.add_argument(
        "--no-operators",
        dest="operators",
        action="store_false",
        help="run standard operators in the place of the bundle's own",
    )
    group.add_argument(
        "--provider",
        metavar="NAME",
        help="tensorrt or tensorrt-rtx: an engine of the bundle; cuda, cpu or another of ONNX"
        " Runtime's (default: an engine that fits here, else the bundle's of ONNX Runtime)",
    )
    group.add_argument(
        "--cuda-graph",
        dest="cuda_graphs",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="record calls that repeat, and replay them (default: with engines, not with ONNX"
        " Runtime)",
    )
    group.add_argument("--verbose", action="store_true", help="show tracebacks")
