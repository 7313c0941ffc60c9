"""The command that decodes with a bundle: prompts in, text or JSON out.

Text goes to stdout as it becomes final (the tokens up to the first mask), a line of numbers to
stderr. With blanks in the prompt, mask ids or `<mask>`, the text starts with the filled prompt.
`--json` prints, for one prompt, `{"ids", "new", "text", "forwards", "skipped", "seconds",
"inexact_draws", "trace", "sampler"}`; for more, `{"results": [{"ids", "new", "text", "trace"}, …]}`
and the numbers of the whole run. `trace` holds [step, position, id]; positions and `ids` are each
prompt's own, without the padding of the batch. `text` is null without a tokenizer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from .answer import Answer, Trace, answers, final_ids
from .bundle import Bundle, read_bundle
from .candidates import wanted
from .errors import UserError
from .loop import Result, decode
from .options import make_parser, settings_from
from .session import Session
from .session_ort import open_session
from .settings import Settings
from .task import Task, make_canvas, make_task
from .text import Stream, Text


def main(bundle: Path, argv: list[str], prog: str | None = None) -> int:
    """Run the command for the bundle in a folder; returns the exit code.

    0 = done, 1 = an error with a hint on stderr, 2 = wrong usage.
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
    args = parser.parse_args(argv)
    prompts: list[str | list[int]] = args.prompts or [_from_stdin(parser)]
    settings = settings_from(args, bundle.decode)
    text = _text(folder, prompts)
    task = _task(bundle, settings, [_ids(p, text, bundle, args) for p in prompts])
    session = open_session(
        bundle,
        settings.cfg_scale > 0,
        wanted(settings),
        args.provider,
        args.threads,
        args.accuracy_level,
    )
    streams = not (args.json or args.no_stream) and len(prompts) == 1 and text is not None
    run = _decode(session, task, Stream(text) if streams and text else None)
    found = answers(task, run.trace)
    if args.json:
        print(json.dumps(_as_json(found, run, task, text)))
        return
    if not streams:
        print("\n".join(_as_text(answer, text) for answer in found))
    print(_numbers(found, run), file=sys.stderr)


def _from_stdin(parser: argparse.ArgumentParser) -> str:
    if sys.stdin is None or sys.stdin.isatty():
        parser.error("give --prompt TEXT, --ids 5,7,9, or text on stdin")
    return sys.stdin.read().rstrip("\r\n")  # what `echo` adds is no part of the prompt


def _text(folder: Path, prompts: list[str | list[int]]) -> Text | None:
    """The tokenizer; None when it cannot be had and all prompts are ids."""
    try:
        return Text(folder / "tokenizer")
    except UserError:
        if any(isinstance(prompt, str) for prompt in prompts):
            raise
        return None


def _ids(
    prompt: str | list[int], text: Text | None, bundle: Bundle, args: argparse.Namespace
) -> list[int]:
    if isinstance(prompt, str):
        assert text is not None
        return text.encode(prompt, bundle.model.mask_id, chat=not args.no_chat_template)
    return prompt


def _task(bundle: Bundle, settings: Settings, prompts: list[list[int]]) -> Task:
    model = bundle.model
    for prompt in prompts:
        wrong = [i for i in prompt if not 0 <= i < model.vocab_size and i != model.mask_id]
        if wrong:
            raise UserError(
                f"id {wrong[0]} is not in the vocabulary of {model.vocab_size}",
                hint=f"give ids from 0 to {model.vocab_size - 1}",
            )
        if len(prompt) + settings.gen_length > model.max_length:
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
    return make_task(model, settings, *make_canvas(prompts, settings.gen_length, model))


@dataclass(frozen=True)
class Run:
    trace: Trace
    result: Result
    seconds: float


def _decode(session: Session, task: Task, stream: Stream | None) -> Run:
    """Decode a task, show final text on stdout as it comes, and end it with a new line."""
    trace: Trace = []
    result, start = Result(task.canvas), time.perf_counter()
    for step in decode(
        session, task.model, task.settings, task.canvas, task.prompt_length, task.key_mask, result
    ):
        if result.nans:
            raise UserError(
                f"the model returned NaN in forward {result.forwards}",
                hint="16-bit floats may overflow: build the bundle with another recipe or target",
            )
        trace += [(step.index, *commit) for commit in step.commits]
        if stream:
            print(stream.more(final_ids(task, 0)), end="", flush=True)
    seconds = time.perf_counter() - start
    if stream:
        print(stream.more(final_ids(task, 0), last=True), flush=True)
    return Run(trace, result, seconds)


def _as_text(answer: Answer, text: Text | None) -> str:
    """The text of an answer; without a tokenizer its ids."""
    return ",".join(map(str, answer.shown)) if text is None else text.decode(answer.shown)


def _as_json(found: list[Answer], run: Run, task: Task, text: Text | None) -> dict[str, object]:
    rows: list[dict[str, object]] = [
        {
            "ids": answer.ids,
            "new": answer.new,
            "text": None if text is None else text.decode(answer.shown),
            "trace": answer.trace,
        }
        for answer in found
    ]
    return {
        **(rows[0] if len(rows) == 1 else {"results": rows}),
        "forwards": run.result.forwards,
        "skipped": run.result.skipped,
        "seconds": run.seconds,
        "inexact_draws": run.result.inexact_draws,
        "sampler": task.settings.sampler,
    }


def _numbers(found: list[Answer], run: Run) -> str:
    tokens, forwards = sum(len(a.trace) for a in found), run.result.forwards
    return (
        f"{forwards} forwards, {run.seconds:.2f} s,"
        f" {tokens / max(run.seconds, 1e-9):.1f} tokens/s,"
        f" {tokens / max(forwards, 1):.2f} tokens/forward"
    )
