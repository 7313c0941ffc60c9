"""`dqexport ablate`: parses, runs, writes, prints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from exporter.quant_flags import takes_quantization
from exporter.quant_options import QuantOptions


@takes_quantization
def ablate(
    quant: QuantOptions,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECKPOINT] [TASKS]...",
            help="A checkpoint folder, `reference` or `reference-steps` (the default), and .jsonl"
            " files; left out: those in the folder `tasks` of the checkpoint.",
        ),
    ] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="One of those to compare.")] = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="Recipes: bits, methods, components or states.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Recipe that all are compared with; else their own method.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Calibration seeds of each recipe.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="They count from here.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples a task.")] = None,
    trajectory: Annotated[int, typer.Option(min=0, help="Prompts compared with float.")] = 32,
    calib: Annotated[Path | None, typer.Option(help="Prompts: .jsonl or .txt.")] = None,
    calib_prompts: Annotated[int, typer.Option(min=1, help="How many are rolled out.")] = 128,
    mask_id: Annotated[int | None, typer.Option(help="Where config.json has none.")] = None,
    eot_id: Annotated[int | None, typer.Option(help="End-of-turn id, if not found.")] = None,
    family: Annotated[
        str | None, typer.Option(help="Its name, where config.json calls the model otherwise.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of runs and tables.")] = Path(
        "ablation"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Compare recipes on one model: accuracy over calibration seeds, with intervals."""
    from exporter.ablation.ablate import AblationOptions
    from exporter.ablation.ablate import ablate as run
    from exporter.ablation.inputs import bases_of, open_tasks, recipes_of
    from exporter.ablation.summary import summarize
    from exporter.ablation.table import markdown, plot, table_csv
    from exporter.errors import UserError
    from exporter.evaluation.inputs import one_kind_of_error
    from exporter.evaluation.subject import Hardware
    from exporter.progress import TerminalProgress
    from exporter.team import device_of
    from exporter.tensor_files import write_atomically

    if quant.seed:
        raise UserError(
            f"--seed {quant.seed}: an ablation has several seeds",
            f"Give the first of them, --first-seed {quant.seed}, and how many: --seeds {seeds}",
        )
    progress = TerminalProgress()
    recipes = recipes_of(recipe or [], preset or [], base)
    options = AblationOptions(
        recipes, tuple(range(first_seed, first_seed + seeds)), quant, calib, calib_prompts,
        trajectory, Hardware(device_of(device)),
    )  # fmt: skip
    with one_kind_of_error():
        opened = open_tasks(arguments or [], limit, (mask_id, eot_id, None, family), progress)
        trials = run(*opened, options, out, progress)
    found = summarize(trials, bases_of(recipes, base))
    write_atomically(out / "table.md", [markdown(found).encode()])
    write_atomically(out / "table.csv", [table_csv(trials).encode()])
    drawn = plot(found, out / "plot.svg")
    if not drawn:
        typer.echo("no plot: `pip install dqexport[plot]` brings matplotlib", err=True)
    print(json.dumps([asdict(row) for row in found], indent=2) if as_json else markdown(found))
