"""The command line: each command parses, calls one function, prints. Errors: `error:`, `hint:`."""

import errno
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from exporter.ablation.command import ablate
from exporter.bench.command import bench
from exporter.errors import UserError
from exporter.evaluation.command import evaluate
from exporter.ops_command import app as ops
from exporter.quant_flags import takes_quantization
from exporter.quant_options import QuantOptions
from exporter.tuning.command import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Takes diffusion language models, quantized with DLLMQuant, to edge devices.",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
INTERRUPTED = 130  # exit code that typer makes of Ctrl-C, without a word
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]


app.command("eval")(evaluate)
app.command("ablate")(ablate)
app.command("tune")(tune)
app.command("bench")(bench)
app.add_typer(ops, name="ops")


@app.callback()
def setup(
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more, show tracebacks.")] = False,
) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO if verbose else logging.WARNING, format="%(message)s"
    )


@app.command()
@takes_quantization
def build(
    quant: QuantOptions,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="Hugging Face folder; left out: the reference model that ships here."),
    ] = None,
    target: Annotated[str, typer.Option(help="See `dqexport targets`.")] = "cpu",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the bundle.")] = Path(
        "bundle"
    ),
    recipe: Annotated[str | None, typer.Option(help="See `dqexport recipes`.")] = None,
    calib: Annotated[Path | None, typer.Option(help="Prompts: .jsonl or .txt.")] = None,
    calib_prompts: Annotated[int, typer.Option(min=1, help="How many are rolled out.")] = 128,
    gate: Annotated[bool, typer.Option(help="Fail where the gate fails.")] = True,
    gate_prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts of the gate.")] = 16,
    sampler: Annotated[str | None, typer.Option(help="Default decoding rule.")] = None,
    gen_length: Annotated[int | None, typer.Option(min=1, help="Default answer length.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default number of steps.")] = None,
    block_length: Annotated[int | None, typer.Option(min=1, help="Default block.")] = None,
    max_canvas: Annotated[int | None, typer.Option(min=2, help="Longest canvas.")] = None,
    mask_id: Annotated[int | None, typer.Option(help="Where config.json has none.")] = None,
    eot_id: Annotated[int | None, typer.Option(help="End-of-turn id, if not found.")] = None,
    attention_block: Annotated[
        int | None, typer.Option(min=1, help="Of a block-causal mask, if config.json is silent.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Its name, where config.json calls the model otherwise.")
    ] = None,
    outputs: Annotated[
        Literal["reductions", "logits"], typer.Option(help="logits: graphs return them too.")
    ] = "reductions",
    accuracy_level: Annotated[
        int,
        typer.Option(
            min=0, max=4, help="Float activations: 0 as they are, 4 to 8 bits a group (faster)."
        ),
    ] = 0,
    operators: Annotated[
        bool, typer.Option(help="Use operators of our own where the target has kernels for them.")
    ] = True,
    device: Annotated[str, typer.Option(help="Of calibration: cpu or cuda.")] = "cpu",
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Graph to build an engine of, may be repeated; default: as needed."),
    ] = None,
    engine_batch: Annotated[
        int, typer.Option(min=1, help="Sequences that an engine takes at once, at most.")
    ] = 1,
    work: Annotated[Path | None, typer.Option(help="Keep and share finished stages here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Build a bundle: calibrate, quantize, lower to ONNX, check against the float model."""
    from exporter.build import BuildOptions
    from exporter.build import build as build_bundle
    from exporter.decoding import DecodeOptions
    from exporter.progress import TerminalProgress

    options = BuildOptions(
        recipe=recipe,
        quant=quant,
        decode=DecodeOptions(sampler, gen_length, steps, block_length, max_canvas),
        mask_id=mask_id,
        eot_id=eot_id,
        attention_block=attention_block,
        family=family,
        calib=calib,
        calib_prompts=calib_prompts,
        gate_prompts=gate_prompts,
        gate=gate,
        logits=outputs == "logits",
        accuracy_level=accuracy_level,
        operators=operators,
        device=device,
        engines=tuple(engine) if engine else None,
        engine_batch=engine_batch,
        work=work,
        force=force,
    )
    manifest = build_bundle(checkpoint, target, out, options, TerminalProgress())
    if manifest is None:
        return  # not the first process of torchrun
    if as_json:
        print(manifest.model_dump_json(indent=2))
    else:
        print(out / "manifest.json")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def run(context: typer.Context, bundle: BundleFolder) -> None:
    """Decode with a bundle: the same options as its decode.py, see `dqexport run BUNDLE --help`."""
    _decode(context, bundle, [])


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def chat(context: typer.Context, bundle: BundleFolder) -> None:
    """Talk with a bundle; options are those of `run`, see `dqexport chat BUNDLE --help`."""
    _decode(context, bundle, ["--chat"])


def _decode(context: typer.Context, bundle: Path, first: list[str]) -> None:
    """Hand over to the loop, whose options stand behind BUNDLE."""
    if str(bundle) in context.help_option_names:
        print(context.get_help())
        return
    from exporter.runtime.command import main as decode

    prog = f"dqexport {context.info_name} {bundle}"
    raise typer.Exit(decode(bundle, [*first, *context.args], prog))


@app.command()
def verify(
    bundle: BundleFolder,
    operators: Annotated[bool, typer.Option(help="Use the bundle's own, or standard ones.")] = True,
    as_json: Json = False,
) -> None:
    """Check every byte of a bundle and run its gate again."""
    from dataclasses import asdict

    from exporter.progress import TerminalProgress
    from exporter.verify import verify as check

    verdict = check(bundle, TerminalProgress(), operators)
    if as_json:
        gate = verdict.gate and verdict.gate.model_dump()
        print(json.dumps({**asdict(verdict), "gate": gate, "sound": verdict.sound}, indent=2))
    for path, reason in verdict.damaged.items():
        typer.echo(f"damaged: {path}: {reason}", err=True)
    for path in verdict.unknown:
        typer.echo(f"not listed in the manifest: {path}", err=True)
    if not verdict.sound:
        what = "is damaged" if verdict.damaged else "no longer passes its gate"
        raise UserError(f"`{bundle}` {what}", "Copy the bundle again, or build it again")
    if not as_json:
        from exporter.inspect import gate_lines

        print(f"{verdict.files} files are as built", *gate_lines(verdict.gate), sep="\n")


@app.command()
def engine(
    bundle: BundleFolder,
    graph: Annotated[
        list[str] | None,
        typer.Option(help="Of which graph, may be repeated; default: those the defaults need."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Build again what is there.")] = False,
    level: Annotated[
        int | None,
        typer.Option(min=0, max=5, help="How long the builder tries; default: TensorRT's own."),
    ] = None,
    workspace_mib: Annotated[
        int | None,
        typer.Option(min=1, help="MiB a layer may take for itself; default: what the GPU has."),
    ] = None,
    trtexec: Annotated[
        bool, typer.Option(help="Build nothing, print the commands that would.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build engines of a bundle on its device, as the bundle's build_engine.py does."""
    from exporter.engines import EngineOptions, build_in_place, commands
    from exporter.verify import read_manifest

    manifest = read_manifest(bundle)
    options = EngineOptions(tuple(graph) if graph else None, force, level, workspace_mib)
    if trtexec:
        print(*commands(bundle, manifest, options), sep="\n")
        return
    built = build_in_place(bundle, manifest, options)
    if as_json:
        print(json.dumps([one.model_dump() for one in built], indent=2))
        return
    for one in built:
        print(bundle / one.path)


@app.command()
def inspect(bundle: BundleFolder, as_json: Json = False) -> None:
    """Show what a bundle is: model, passes, graphs, gate, sizes."""
    from exporter.inspect import describe
    from exporter.verify import read_manifest

    manifest = read_manifest(bundle)
    print(manifest.model_dump_json(indent=2) if as_json else describe(manifest))


@app.command()
def targets(as_json: Json = False) -> None:
    """List the targets and what `build` makes for each."""
    from exporter.inspect import target_rows

    _print_table(target_rows(), as_json)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes."""
    from exporter.inspect import recipe_rows

    _print_table(recipe_rows(), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and what each target lacks here."""
    from dataclasses import asdict

    from exporter.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    for finding in findings:
        print(f"{'ok ' if finding.ok else '-- '} {finding.name}: {finding.seen}")
        if finding.hint and not finding.ok:
            print(f"      {finding.hint}")


def _print_table(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    widths = [max(len(row[key]) for row in rows) for key in rows[0]]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row.values(), widths, strict=True)]
        print("  ".join(cells).rstrip())


def main() -> None:
    """Entry point: turns errors into two lines and exit code 1."""
    try:
        app()
    except (UserError, OSError) as error:
        if "--verbose" in sys.argv:
            raise
        _report(*_explain(error))
        raise SystemExit(1) from None
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            decodes = bool({"run", "chat"} & set(sys.argv[1:3]))
            hint = "" if decodes else "A build goes on where it was: run the same command again"
            _report("Interrupted", hint)
        raise


def _report(message: str, hint: str) -> None:
    typer.echo(f"error: {message}" + (f"\n\nhint: {hint}" if hint else ""), err=True)


def _explain(error: UserError | OSError) -> tuple[str, str]:
    if isinstance(error, UserError):
        return str(error), error.hint
    hints = {
        errno.ENOSPC: "Free some disk space and run the same command: it goes on",
        errno.EACCES: "Choose a folder that you may write to with -o",
        errno.EROFS: "Choose a folder on a disk that can be written to with -o",
        errno.EPERM: "Choose a folder that you may write to with -o",
    }
    where = f" `{error.filename}`" if error.filename else ""
    return f"{error.strerror or error}{where}", hints.get(error.errno or 0, "")
