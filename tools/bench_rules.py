"""Every decoding rule with every cache on a bundle: accuracy, model calls, speed.

    dqexport build reference-steps … && python -m tools.bench_rules BUNDLE --tasks TASKS.jsonl

A setting is scored on all prompts, batches of equal shape, and timed on a few, one at a time, all
settings in turn; times are medians over rounds. Rules run with their own default numbers.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from exporter.errors import UserError
from exporter.evaluation.inputs import Names, one_kind_of_error, open_inputs
from exporter.evaluation.subject import Hardware
from exporter.progress import TerminalProgress
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.samplers import SAMPLERS
from exporter.runtime.settings import CACHES
from exporter.tuning.candidates import Candidate, make
from exporter.tuning.frontier import markdown
from exporter.tuning.search import BASELINE, Search, TuneOptions, loaded_once, winner


def every_setting(model: ModelFacts, block_length: int) -> list[Candidate]:
    """Each sampler with each cache; those that a model cannot be decoded with fall out later."""
    blocks = {"block_length": block_length} if model.attention == "full" else {}
    return [
        make(sampler=sampler, cache=cache, **({} if row.by_canvas else blocks))
        for sampler, row in SAMPLERS.items()
        for cache in CACHES
    ]


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle")],
    tasks: Annotated[list[Path], typer.Option("--tasks", help="Examples with answers, .jsonl")],
    limit: Annotated[int | None, typer.Option(help="Examples a file")] = None,
    block_length: Annotated[int, typer.Option(help="Of rules that know blocks")] = 4,
    rounds: Annotated[int, typer.Option(help="Of timing")] = 3,
    timed: Annotated[int, typer.Option(help="Prompts that are timed")] = 4,
    out: Annotated[Path | None, typer.Option(help="Keep the runs here; goes on if killed")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print one table of rules and caches."""
    progress, hardware = TerminalProgress(), Hardware()
    options = TuneOptions(timed=timed, rounds=rounds)
    try:
        with TemporaryDirectory() as scratch, one_kind_of_error():
            names = Names(str(bundle), tuple(tasks), limit=limit)
            with open_inputs(names, hardware, progress) as found:
                search = Search(
                    loaded_once(found.subject),
                    found.examples,
                    options,
                    out or Path(scratch),
                    progress,
                )
                settings = every_setting(found.subject.facts, block_length)
                trials = search.timed(search.score([BASELINE, *settings]))
    except UserError as error:
        typer.echo(f"error: {error}\n\nhint: {error.hint}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps([asdict(trial) for trial in trials], indent=1))
    else:
        typer.echo(markdown(trials, winner(trials, options.budget)))


if __name__ == "__main__":
    typer.run(main)
