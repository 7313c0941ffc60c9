"""Trains a masked-diffusion model on tasks that check themselves, in the LLaDA or SDAR layout.

    python -m tools.train_reference OUT                         half an hour on one CPU core
    python -m tools.train_reference OUT --task addition --task words=3 --minutes 10
    python -m tools.train_reference OUT --reference steps --start FOLDER --task split=8 --task chain
    python -m tools.train_reference OUT --reference steps --start FOLDER --block-causal 4

Killed, the same command goes on from the last checkpoint. The finished folder holds config,
weights, tokenizer, calibration and held-out prompts, and `training.json` with settings and scores.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional

from exporter.checkpoint import open_checkpoint
from exporter.errors import UserError
from exporter.tasks import Example, Reference, held_out_tasks, is_correct, task
from tools.reference_data import MASK, character_ids, decode, shipped_shape, write_folder
from tools.reference_network import Network
from tools.reference_training import Progress, Settings, as_json, begin, resume, train

SCORED_TOGETHER = 250  # prompts, which bounds memory


@torch.inference_mode()
def generate(network: Network, prompts: torch.Tensor, width: int, steps: int) -> torch.Tensor:
    """Answers (B, width) to prompts (B, P) by low-confidence decoding, in one block or in its own.

    Each of `steps` forward passes commits the same number of tokens, those of highest probability
    (arXiv 2502.09992, section 2.4).
    """
    canvas = functional.pad(prompts, (0, width), value=MASK)
    answer = canvas[:, -width:]  # a view: commits are written to the canvas
    for span in spans(prompts.shape[1], width, network.shape.block):
        size = span.stop - span.start
        calls = max(1, steps * size // width)
        for call in range(calls):
            logits = network(canvas)[:, -width:][:, span].double()
            logits[..., MASK] = -torch.inf
            best, token = logits.softmax(-1).max(-1)
            best[answer[:, span] != MASK] = -1
            quota = size * (call + 1) // calls - size * call // calls
            chosen = best.topk(quota, dim=-1).indices
            answer[:, span].scatter_(1, chosen, token.gather(1, chosen))
    return answer


def spans(prompt_width: int, width: int, block: int | None) -> list[slice]:
    """The places of an answer that are filled together; blocks count from the prompt's start."""
    if block is None:
        return [slice(0, width)]
    ends = [*range(block - prompt_width % block, width, block), width]
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def score(
    network: Network, examples: list[Example], ids: dict[str, int], device: str, per_step: int = 1
) -> float:
    """Share of `examples`, all of one task, answered right with `per_step` tokens a step."""
    width = examples[0].gen_length or 0
    if block := network.shape.block:
        width += -(len(examples[0].prompt) + width) % block
    right = 0
    for first in range(0, len(examples), SCORED_TOGETHER):
        batch = examples[first : first + SCORED_TOGETHER]
        prompts = torch.tensor([[ids[c] for c in example.prompt] for example in batch])
        rows = generate(network, prompts.to(device), width, width // per_step).tolist()
        pairs = zip(batch, rows, strict=True)
        right += sum(is_correct(example, decode(row, ids)) for example, row in pairs)
    return right / len(examples)


def finish(folder: Path, settings: Settings, progress: Progress, device: str, count: int) -> None:
    """Writes the folder, then scores what was written: bf16 weights, held-out prompts."""
    corpus, ids = settings.corpus(), character_ids(settings.reference)
    network = progress.average.to(torch.bfloat16).float().eval()
    write_folder(folder, network, settings.reference, corpus, settings.seed)
    scores = {}
    for one in corpus.tasks:
        held_out = corpus.distinct(one, True, count, settings.seed)
        scores[one.name] = score(network, held_out, ids, device)
    facts = {
        "settings": as_json(settings),
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "scores": scores,
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def parse_tasks(texts: list[str]) -> tuple[tuple[str, float], ...]:
    """`words=3` → ("words", 3.0); a weight of 1 where none is given."""
    parsed: dict[str, float] = {}
    for text in texts:
        name, _, weight = text.partition("=")
        try:
            parsed[task(name).name] = float(weight or 1)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: {error}") from error
        if not 0 < parsed[name] < math.inf:
            raise typer.BadParameter(f"{text!r}: the weight is not above 0")
    return tuple(parsed.items())


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write")],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="NAME or NAME=WEIGHT [default: all its tasks]"),
    ] = None,
    reference: Annotated[
        Reference, typer.Option(help="Whose tokenizer, sizes and tasks")
    ] = "one-step",
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint of these sizes whose weights to begin from")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Sizes other than the reference's")] = None,
    layers: int | None = None,
    heads: int | None = None,
    mlp: int | None = None,
    block_causal: Annotated[
        int | None,
        typer.Option(min=1, help="Block-causal attention with blocks of so many tokens, as SDAR"),
    ] = None,
    steps: int = Settings.steps,
    minutes: Annotated[float | None, typer.Option(help="Train so long instead of steps")] = None,
    batch: int = Settings.batch,
    rate: Annotated[float, typer.Option(help="Highest learning rate")] = Settings.rate,
    warm_up: Annotated[float, typer.Option(help="Share of the training")] = Settings.warm_up,
    ema: Annotated[float, typer.Option(help="Decay of averaged weights, 0: none")] = Settings.ema,
    surest: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows masked as decoding does")
    ] = Settings.surest,
    bf16: bool = False,
    seed: int = 0,
    device: str = "cpu",
    score_prompts: Annotated[int, typer.Option(help="Held-out prompts a task")] = 400,
) -> None:
    """Train a masked-diffusion model on self-checking tasks; the scores go to stdout."""
    sizes = {
        "width": width, "layers": layers, "heads": heads, "mlp": mlp, "block": block_causal
    }  # fmt: skip
    if block_causal and surest:
        raise typer.BadParameter("--surest is for full attention, not for --block-causal")
    shape = replace(shipped_shape(reference), **{k: v for k, v in sizes.items() if v is not None})
    checkpoint = out / ".training" / "checkpoint.safetensors"
    try:
        origin = open_checkpoint(start) if start else None
        settings = Settings(
            shape=shape,
            tasks=parse_tasks(tasks or held_out_tasks(reference)),
            reference=reference,
            start=origin.digest() if origin else "",
            steps=steps,
            minutes=minutes,
            batch=batch,
            rate=rate,
            warm_up=warm_up,
            ema=ema,
            surest=surest,
            bf16=bf16,
            seed=seed,
        )
        known = checkpoint.exists()
        progress = (
            resume(checkpoint, settings, device) if known else begin(settings, device, origin)
        )
    except UserError as error:
        typer.echo(f"error: {error}\n\nhint: {error.hint}", err=True)
        raise typer.Exit(1) from None
    train(settings, progress, device, checkpoint)
    finish(out, settings, progress, device, score_prompts)
    typer.echo((out / "training.json").read_text(), nl=False)


if __name__ == "__main__":
    typer.run(main)
