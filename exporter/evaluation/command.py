"""`dqexport eval`: parses, evaluates, prints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.quant_flags import takes_quantization
from exporter.quant_options import QuantOptions


@takes_quantization
def evaluate(
    quant: QuantOptions,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUBJECT] [TASKS]...",
            help="SUBJECT: checkpoint folder, bundle folder, `reference` (the default),"
            " `reference-steps` or `reference-blocks`. TASKS: .jsonl files, an example a line; left"
            " out: those in the folder `tasks` of a checkpoint.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Quantize the checkpoint, in simulation; see `recipes`.")
    ] = None,
    calib: Annotated[Path | None, typer.Option(help="For that: prompts, .jsonl or .txt.")] = None,
    calib_prompts: Annotated[int, typer.Option(min=1, help="How many are rolled out.")] = 128,
    work: Annotated[Path | None, typer.Option(help="Keep and share quantized blocks here.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the run here; run again, it goes on.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="A run on the same examples to compare with.")
    ] = None,
    likelihood: Annotated[
        Path | None, typer.Option(help="Questions whose answers' likelihood is estimated: .jsonl.")
    ] = None,
    mc_num: Annotated[int, typer.Option(min=1, help="Masks drawn an answer.")] = 128,
    mc_batch: Annotated[int, typer.Option(min=1, help="Masks that are stratified together.")] = 16,
    trajectory: Annotated[
        int, typer.Option(min=0, help="Prompts on which decoding is compared with float.")
    ] = 0,
    twin: Annotated[
        str | None, typer.Option("--float", help="For that: the float checkpoint of a bundle.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples a task.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Prompts decoded together.")] = None,
    chat_template: Annotated[bool, typer.Option(help="Use it, where the model has one.")] = True,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs that the model wrote.")
    ] = False,
    mask_id: Annotated[int | None, typer.Option(help="Where config.json has none.")] = None,
    eot_id: Annotated[int | None, typer.Option(help="End-of-turn id, if not found.")] = None,
    attention_block: Annotated[
        int | None, typer.Option(min=1, help="Of a block-causal mask, if config.json is silent.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="Its name, where config.json calls the model otherwise.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of a checkpoint: cpu or cuda.")] = "cpu",
    provider: Annotated[str | None, typer.Option(help="Of a bundle: ONNX Runtime's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a bundle: CPU threads.")] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(min=0, max=4, help="Of a bundle: MatMulNBits.")
    ] = None,
    operators: Annotated[bool, typer.Option(help="Of a bundle: use its own operators.")] = True,
    sampler: Annotated[str | None, typer.Option(help="Rule that commits tokens.")] = None,
    gen_length: Annotated[int | None, typer.Option(min=0, help="Tokens to generate.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Model calls an answer.")] = None,
    block_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a block.")] = None,
    cache: Annotated[
        str | None, typer.Option(help="Keys and values kept: none, prefix, dual or exact.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Of the sampler of that name.")] = None,
    factor: Annotated[float | None, typer.Option(help="Of the sampler of that name.")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance.")] = None,
    eps: Annotated[float | None, typer.Option(help="Last time of a canvas schedule.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the draws; 0: arg-max.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the K best.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the best of this mass.")] = None,
    alg_temp: Annotated[float | None, typer.Option(help="Draw positions too.")] = None,
    early_stop: Annotated[bool | None, typer.Option(help="Stop once an answer ended.")] = None,
    eos_inf: Annotated[bool | None, typer.Option(help="Never predict end of text.")] = None,
    confidence_eos_inf: Annotated[
        bool | None, typer.Option(help="Commit end-of-text tokens last.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Evaluate a model: right answers, likelihoods, and how far it strays from float."""
    from exporter.evaluation.evaluate import EvalOptions
    from exporter.evaluation.evaluate import evaluate as run
    from exporter.evaluation.inputs import (
        Names,
        monte_carlo,
        one_kind_of_error,
        open_inputs,
        refuse_idle_flags,
        split_arguments,
    )
    from exporter.evaluation.simulated_subject import Quantization
    from exporter.evaluation.subject import Hardware
    from exporter.evaluation.table import render
    from exporter.progress import TerminalProgress
    from exporter.team import device_of

    given: dict[str, Any] = {
        "sampler": sampler, "gen_length": gen_length, "steps": steps, "block_length": block_length,
        "cache": cache, "threshold": threshold, "factor": factor, "cfg_scale": cfg_scale,
        "eps": eps, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "alg_temp": alg_temp, "seed": quant.seed or None, "early_stop": early_stop,
        "eos_inf": eos_inf, "confidence_eos_inf": confidence_eos_inf,
    }  # fmt: skip
    progress = TerminalProgress()
    hardware = Hardware(device_of(device), provider, threads, accuracy_level, operators)
    subject, tasks = split_arguments(arguments or [])
    quantization = Quantization(recipe, quant, calib, calib_prompts) if recipe else None
    if recipe is None:
        refuse_idle_flags(quant, calib, work)
    names = Names(
        subject,
        tasks,
        likelihood,
        twin,
        limit,
        (mask_id, eot_id, attention_block, family),
        quantization,
        work,
    )
    options = EvalOptions(
        decode={name: value for name, value in given.items() if value is not None},
        chat=chat_template,
        batch=batch,
        allow_code=allow_code,
        monte_carlo=monte_carlo(mc_num, mc_batch, quant.seed, cfg_scale or 0.0),
        trajectory=trajectory,
        hardware=hardware,
        out=out,
        against=against,
    )
    with one_kind_of_error(), open_inputs(names, hardware, progress) as found:
        figures = run(found.subject, found.examples, found.questions, found.twin, options, progress)
    print(json.dumps(asdict(figures), indent=2) if as_json else render(figures))
