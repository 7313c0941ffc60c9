"""The command that decodes with a bundle: prompts in, text or JSON out.

Text goes to stdout, a line of numbers to stderr. With one prompt at a time it comes as it becomes
final: the tokens up to the first mask. With blanks in the prompt, mask ids or `<mask>`, the text
starts with the filled prompt.
`--json` prints a line for each prompt, as soon as its batch is done: `{"index", "ids", "new",
"text", "trace", "sampler", "inexact_draws", "prompts", "runs_on"}` and the figures of
`statistics.py`, such as "forwards", "skipped" and "seconds". `trace` holds [step, position, id];
positions and `ids` are the prompt's own, without the padding of the batch. `text` is null without a
tokenizer. `prompts` is how many were decoded together: the figures are those of all of them.
`runs_on` tells what did it: {"provider", "runtime", "version", "file"}.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path

from .allowed import allowed_ids
from .bundle import read_bundle
from .chat import Chat
from .conversation import Conversation
from .engine import Engine, Run, View
from .errors import UserError
from .open_model import Hardware
from .options import make_parser, parse, settings_from
from .progress import Progress
from .prompts import Prompt, batches, given_prompts, prepare
from .statistics import total
from .stream import CommitStream, TextStream, unseen
from .text import Text
from .watch import Watch, check_terminal


def main(bundle: Path, argv: list[str], prog: str | None = None) -> int:
    """Run the command for the bundle in a folder; returns the exit code.

    0 = done, 1 = an error with a hint on stderr, 2 = wrong usage, 130 = interrupted.
    """
    try:
        _run(bundle, argv, prog)
    except SystemExit as stop:  # argparse: help or wrong usage
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if "--verbose" in argv:
            traceback.print_exc()
        _report(error)
        return 1
    return 0


def _report(error: Exception) -> None:
    known = isinstance(error, UserError)
    hint = error.hint if isinstance(error, UserError) else "--verbose shows where this comes from"
    message = str(error) if known else f"{type(error).__name__}: {error}"
    print(f"error: {message}" + (f"\n\nhint: {hint}" if hint else ""), file=sys.stderr)


def _run(folder: Path, argv: list[str], prog: str | None) -> None:
    bundle = read_bundle(folder)
    parser = make_parser(bundle.decode, prog)
    args = parse(parser, argv)
    if args.watch is not None:
        check_terminal()
    sources = [] if args.chat else given_prompts(args, parser)
    needed = args.chat or any(source.text is not None for source in sources)
    text = _text(folder, needed)
    allowed = allowed_ids(args.allow_ids, args.forbid_ids, bundle.model)
    hardware = Hardware(
        args.provider, args.threads, args.accuracy_level, args.operators, args.cuda_graphs
    )
    engine = Engine(bundle, text, hardware, allowed, args.batch)
    if args.chat:
        _chat(engine, args)
    else:
        _decode_all(engine, prepare(sources, args, bundle, text), args)


def _text(folder: Path, needed: bool) -> Text | None:
    """The tokenizer; None when it cannot be had and need not be."""
    try:
        return Text(folder / "tokenizer")
    except UserError:
        if needed:
            raise
        return None


def _chat(engine: Engine, args: argparse.Namespace) -> None:
    settings, text = settings_from(args, engine.bundle.decode), engine.text
    assert text is not None
    templated = not args.no_chat_template and text.has_template()
    conversation = Conversation(text, engine.bundle.model, templated)
    shows_text = args.stream == "text"
    Chat(engine, conversation, settings, _view(args, text), shows_text, args.stats).run()


def _view(args: argparse.Namespace, text: Text | None) -> View:
    if args.watch is not None:
        return Watch(text, args.watch, keep=not args.chat)
    if args.stream == "commits":
        return CommitStream(text)
    return TextStream(text) if args.stream == "text" and text is not None else unseen


def _decode_all(engine: Engine, prompts: list[Prompt], args: argparse.Namespace) -> None:
    """Decode all prompts, batch by batch, and print what comes of each."""
    view = _view(args, engine.text)
    progress = Progress(len(prompts), len(prompts) > 1 and not (args.live and sys.stdout.isatty()))
    runs: list[Run] = []
    for batch in batches(prompts, args.batch):
        if args.live and len(prompts) > 1:
            print(_headline(batch[0], len(prompts)), flush=True)
        run = engine.decode([prompt.ids for prompt in batch], batch[0].settings, view)
        progress.clear()
        _print(run, batch, args, engine.text, len(prompts))
        runs.append(run)
        progress.show(total([run.statistics for run in runs]))
    progress.clear()
    statistics = total([run.statistics for run in runs])
    if args.stats:
        ran = dict.fromkeys(run.runs_on.line() for run in runs)
        print("\n".join([*statistics.lines(), *ran]), file=sys.stderr)
    elif not args.json:
        print(statistics.line(), file=sys.stderr)


def _headline(prompt: Prompt, total: int) -> str:
    return f"--- {prompt.index + 1}/{total} ---"


def _print(
    run: Run, batch: list[Prompt], args: argparse.Namespace, text: Text | None, total: int
) -> None:
    """Print a batch's answers, unless the view has done so."""
    for prompt, answer in zip(batch, run.answers, strict=True):
        if args.json:
            line = {
                "index": prompt.index,
                **answer.as_json(text),
                "sampler": prompt.settings.sampler,
                "inexact_draws": run.inexact_draws,
                "prompts": len(batch),
                "runs_on": run.runs_on.as_json(),
                **run.statistics.as_json(),
            }
            print(json.dumps(line), flush=True)
            continue
        if total > 1 and not args.live:
            print(_headline(prompt, total))
        if args.stream == "commits":
            print()
        if args.stream != "text" or text is None:
            print(answer.as_text(text), flush=True)
