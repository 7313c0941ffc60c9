"""Accuracy of quantized bundles on held-out prompts, beside the float bundle of the same run.

Every bundle is decoded by the emitted loop over ONNX Runtime, in this process. Accuracies come with
Wilson's 95 % interval; the difference to the float bundle is taken prompt by prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from exporter.agreement import wilson
from exporter.build import BuildOptions, build
from exporter.evaluation.paired import count_pairs, difference_interval, mcnemar
from exporter.quant_options import QuantOptions
from exporter.runtime.answer import answer_end
from exporter.runtime.bundle import Bundle, read_bundle
from exporter.runtime.candidates import wanted
from exporter.runtime.loop import generate
from exporter.runtime.session import Session
from exporter.runtime.session_ort import open_session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas, make_task
from exporter.runtime.text import Text
from exporter.tasks import Example, is_correct, read_examples, reference_folder
from tools.tables import Row, render

FLOAT = "fp32"
RECIPES, SEEDS = ["w4a16-dllmquant", "w4a16-gptq", "w4a16-rtn"], [0]
ALL = "all"  # every task together
Answers = dict[str, list[bool]]  # task -> right or wrong, prompt by prompt


@dataclass(frozen=True)
class Decoding:
    """How bundles are run."""

    steps: int | None = None  # calls an answer; None: as many as it has tokens
    batch: int = 100  # prompts decoded together
    threads: int | None = None
    accuracy_level: int | None = None  # of MatMulNBits; None: the bundle's


def held_out(folder: Path, prompts: int) -> dict[str, list[Example]]:
    """The first `prompts` examples of every task of a model folder."""
    files = sorted((folder / "tasks").glob("*.jsonl"))
    return {file.stem: read_examples(file)[:prompts] for file in files}


def build_for(checkpoint: Path | None, recipe: str, seed: int, target: str, scratch: Path) -> Path:
    """The bundle of a recipe; stages are shared between bundles. The gate is left to this run."""
    out = scratch / f"{recipe}-{seed}"
    options = BuildOptions(
        recipe=recipe,
        quant=QuantOptions(seed=seed),
        calib=checkpoint and checkpoint / "calibration.jsonl",
        gate_prompts=1,
        gate=False,
        work=scratch / "work",
    )
    build(checkpoint, target, out, options)
    return out


def evaluate(folder: Path, tasks: dict[str, list[Example]], how: Decoding) -> Answers:
    """Which held-out prompts a bundle answers right, task by task and all together."""
    bundle, text = read_bundle(folder), Text(folder / "tokenizer")
    session = open_session(
        bundle, False, wanted(bundle.decode), None, how.threads, how.accuracy_level
    )
    right: Answers = {}
    for task, examples in tasks.items():
        right[task] = []
        for first in range(0, len(examples), how.batch):
            batch = examples[first : first + how.batch]
            texts = answer(session, bundle, text, batch, how.steps)
            right[task] += [is_correct(e, t) for e, t in zip(batch, texts, strict=True)]
    return {**right, ALL: [one for answers in right.values() for one in answers]}


def answer(
    session: Session, bundle: Bundle, text: Text, batch: Sequence[Example], steps: int | None
) -> list[str]:
    """The decoded answers to examples of one task, each in one block."""
    model, length = bundle.model, batch[0].gen_length or bundle.decode.gen_length
    settings: Settings = replace(bundle.decode, gen_length=length, block_length=length, steps=steps)
    prompts = [text.encode(example.prompt, model.mask_id, chat=True) for example in batch]
    canvas, start, key_mask = make_canvas(prompts, length, model)
    task = make_task(model, settings, canvas, start, key_mask)
    generate(session, model, settings, canvas, start, key_mask)
    ends = [answer_end(task, row) for row in range(len(batch))]
    return [text.decode(canvas[row, start:end].tolist()) for row, end in enumerate(ends)]


def compare(recipe: str, seed: int, ours: Answers, theirs: Answers) -> list[Row]:
    """One row a task."""
    rows: list[Row] = []
    for task, right in ours.items():
        pairs = count_pairs(right, theirs[task])
        rows.append(
            {
                "recipe": recipe,
                "seed": seed,
                "task": task,
                "prompts": len(right),
                "accuracy %": percent(sum(right) / len(right)),
                "95 %": [percent(end) for end in wilson(sum(right), len(right))],
                "minus float, points": percent(pairs.difference),
                "95 % of it": [percent(end) for end in difference_interval(pairs)],
                "gained": pairs.ours,
                "lost": pairs.theirs,
                "McNemar p": round(mcnemar(pairs), 4),
            }
        )
    return rows


def percent(share: float) -> float:
    return round(100 * share, 2)


def main(
    recipe: Annotated[list[str], typer.Option(help="Of `dqexport recipes`; repeatable.")] = RECIPES,
    seed: Annotated[list[int], typer.Option(help="Of the calibration; repeatable.")] = SEEDS,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts a task.")] = 500,
    steps: Annotated[int | None, typer.Option(min=1, help="Calls an answer.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts decoded together.")] = 100,
    threads: Annotated[int | None, typer.Option(min=1, help="Of ONNX Runtime.")] = None,
    accuracy_level: Annotated[int | None, typer.Option(help="MatMulNBits: 0 or 4.")] = None,
    target: str = "cpu",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Another trained folder with tasks/ and calibration.jsonl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Build bundles, answer held-out prompts with them, and compare with the float bundle."""
    tasks = held_out(checkpoint or reference_folder(), prompts)
    how = Decoding(steps, batch, threads, accuracy_level)
    with TemporaryDirectory() as name:
        scratch = Path(name)
        floats = evaluate(build_for(checkpoint, FLOAT, seed[0], target, scratch), tasks, how)
        rows = compare(FLOAT, seed[0], floats, floats)
        for one in recipe:
            for number in seed if not one.endswith("-rtn") else seed[:1]:  # rtn draws nothing
                bundle = build_for(checkpoint, one, number, target, scratch)
                rows += compare(one, number, evaluate(bundle, tasks, how), floats)
    typer.echo(render(rows, as_json))


if __name__ == "__main__":
    typer.run(main)
