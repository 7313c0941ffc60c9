"""`dqexport tune`: parses, searches, writes the winner into the manifest, prints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    tasks: Annotated[
        list[Path], typer.Option("--tasks", help="Examples with answers, .jsonl; repeatable.")
    ],
    budget: Annotated[
        float, typer.Option(min=0, max=1, help="Share of right answers that may be given up.")
    ] = 0.01,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples a file.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Runs, table and plot. [default: BUNDLE-tune]"),
    ] = None,
    write: Annotated[
        bool, typer.Option(help="Make the winner the bundle's default settings.")
    ] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of timing.")] = 3,
    timed: Annotated[int, typer.Option(min=1, help="Prompts that speed is measured on.")] = 4,
    chat_template: Annotated[bool, typer.Option(help="Use it, where the model has one.")] = True,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs that the model wrote.")
    ] = False,
    provider: Annotated[str | None, typer.Option(help="ONNX Runtime's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Find the fastest decoding settings whose accuracy stays within a budget."""
    from exporter.evaluation.inputs import Names, one_kind_of_error, open_inputs
    from exporter.evaluation.subject import Hardware
    from exporter.progress import TerminalProgress
    from exporter.tensor_files import write_atomically
    from exporter.tuning.apply import apply, read_sound
    from exporter.tuning.frontier import markdown, plot
    from exporter.tuning.search import TuneOptions, winner
    from exporter.tuning.search import tune as search

    progress, hardware = TerminalProgress(), Hardware("cpu", provider, threads, None)
    manifest = read_sound(bundle)
    out = out or bundle.with_name(bundle.resolve().name + "-tune")
    options = TuneOptions(budget, timed, rounds, chat_template, allow_code)
    names = Names(str(bundle), tuple(tasks), limit=limit)
    with one_kind_of_error(), open_inputs(names, hardware, progress) as found:
        trials = search(found.subject, found.examples, options, out, progress)
    best = winner(trials, budget)
    write_atomically(out / "table.md", [markdown(trials, best).encode()])
    if not plot(trials, best, budget, out / "frontier.svg"):
        typer.echo("no plot: `pip install dqexport[plot]` brings matplotlib", err=True)
    if write:
        apply(bundle, manifest, best, trials[0], " ".join(file.name for file in tasks))
    if as_json:
        print(json.dumps({"best": asdict(best), "trials": [asdict(t) for t in trials]}, indent=2))
        return
    print(markdown(trials, best))
    print(f"chosen: {best.name}, {trials[0].seconds / best.seconds:.2f} times as fast")
