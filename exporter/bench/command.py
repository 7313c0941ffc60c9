"""`dqexport bench`: parses, measures, prints."""

import json
from pathlib import Path
from typing import Annotated

import typer

UNMEASURED = 3  # exit code: what the bundle's target runs it with is not here


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Compare with this float checkpoint in torch; may be `reference`."),
    ] = None,
    canvas: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Tokens, repeatable. [default: 1/16, 1/4, all of the longest]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="That count; three more warm up.")] = 10,
    prompts: Annotated[int, typer.Option(min=0, help="Decoded in each round; 0: none.")] = 4,
    profile: Annotated[bool, typer.Option("--profile", help="Time single layers, too.")] = False,
    provider: Annotated[
        str | None, typer.Option(help="This alone: tensorrt, tensorrt-rtx, cuda, cpu …")
    ] = None,
    cuda_graph: Annotated[
        bool | None,
        typer.Option("--cuda-graph/--no-cuda-graph", help="Record calls. [default: of engines]"),
    ] = None,
    operators: Annotated[bool, typer.Option(help="The bundle's own, or standard ones.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="Of torch: cpu or cuda.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Measure how fast a bundle is here: its engines, ONNX Runtime, torch.

    Exit code 3 where what its target runs it with cannot be measured on this machine.
    """
    from rich.console import Console

    from exporter.bench.contestants import contestants
    from exporter.bench.forwards import default_canvases
    from exporter.bench.measure import BenchOptions, measure
    from exporter.bench.table import as_json as described
    from exporter.bench.table import tables
    from exporter.progress import TerminalProgress
    from exporter.runtime.built_engines import read_engines
    from exporter.runtime.bundle import read_bundle
    from exporter.runtime.open_model import Hardware
    from exporter.verify import read_manifest

    manifest = read_manifest(bundle)
    opened, engines = read_bundle(bundle), read_engines(bundle)
    lengths = canvas or default_canvases(opened.model.max_length)
    check_canvases(lengths, opened.model.max_length)
    hardware = Hardware(provider, threads, None, operators, cuda_graph)
    measured = measure(
        opened, manifest, contestants(opened, manifest, hardware, checkpoint, device),
        BenchOptions(tuple(lengths), rounds, prompts, profile, device), TerminalProgress(),
    )  # fmt: skip
    found = described(measured, engines.built if engines else (), manifest.target)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        console = Console()
        for part in tables(found):
            console.print(part, highlight=False, soft_wrap=isinstance(part, str))
    if not any(outcome.own for outcome in measured.outcomes):
        raise typer.Exit(UNMEASURED)


def check_canvases(lengths: list[int], longest: int) -> None:
    """Raises UserError for canvases that the bundle cannot hold."""
    from exporter.errors import UserError

    for length in lengths:
        if length > longest:
            raise UserError(
                f"a canvas of {length} tokens is more than the {longest} of this bundle",
                "Give a shorter --canvas, or build the bundle with --max-canvas",
            )
