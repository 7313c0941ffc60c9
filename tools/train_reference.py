"""Trains a masked-diffusion model from nothing on tasks that check themselves, in the LLaDA layout.

    python -m tools.train_reference OUT                         half an hour on one CPU core
    python -m tools.train_reference OUT --task addition --task words=3 --minutes 10

Killed, the same command goes on from the last checkpoint. The finished folder holds config,
weights, tokenizer, calibration and held-out prompts, and `training.json` with settings and scores.
"""

import json
import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional

from exporter.errors import UserError
from exporter.tasks import Example, is_correct, task
from exporter.tasks.problems import ANSWER_TOKENS
from tools.reference_data import MASK, character_ids, decode, write_folder
from tools.reference_network import Network, Shape
from tools.reference_training import (
    DEFAULT_TASKS,
    Progress,
    Settings,
    as_json,
    begin,
    resume,
    train,
)


@torch.inference_mode()
def generate(network: Network, prompts: torch.Tensor, steps: int) -> torch.Tensor:
    """Answers (B, ANSWER_TOKENS) to prompts (B, P) by low-confidence decoding in one block.

    Each of `steps` forward passes commits the same number of tokens, those of highest probability
    (arXiv 2502.09992, section 2.4).
    """
    canvas = functional.pad(prompts, (0, ANSWER_TOKENS), value=MASK)
    answer = canvas[:, -ANSWER_TOKENS:]  # a view: commits are written to the canvas
    for step in range(steps):
        logits = network(canvas)[:, -ANSWER_TOKENS:].double()
        logits[..., MASK] = -torch.inf
        best, token = logits.softmax(-1).max(-1)
        best[answer != MASK] = -1
        quota = ANSWER_TOKENS * (step + 1) // steps - ANSWER_TOKENS * step // steps
        chosen = best.topk(quota, dim=-1).indices
        answer.scatter_(1, chosen, token.gather(1, chosen))
    return answer


def score(network: Network, examples: list[Example], device: str) -> float:
    """Share of `examples` answered right, one token a step."""
    ids = character_ids()
    prompts = torch.tensor([[ids[c] for c in example.prompt] for example in examples])
    rows = generate(network, prompts.to(device), ANSWER_TOKENS).tolist()
    pairs = zip(examples, rows, strict=True)
    return sum(is_correct(example, decode(row, ids)) for example, row in pairs) / len(examples)


def finish(folder: Path, settings: Settings, progress: Progress, device: str, count: int) -> None:
    """Writes the folder, then scores what was written: bf16 weights, held-out prompts."""
    corpus = settings.corpus()
    network = progress.average.to(torch.bfloat16).float().eval()
    write_folder(folder, network, corpus, settings.seed)
    scores = {}
    for one in corpus.tasks:
        scores[one.name] = score(network, corpus.distinct(one, True, count, settings.seed), device)
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
    tasks: Annotated[list[str], typer.Option("--task", help="NAME or NAME=WEIGHT")] = DEFAULT_TASKS,
    width: int = 192,
    layers: int = 4,
    heads: int = 3,
    mlp: int = 576,
    steps: int = Settings.steps,
    minutes: Annotated[float | None, typer.Option(help="Train so long instead of steps")] = None,
    batch: int = Settings.batch,
    rate: Annotated[float, typer.Option(help="Highest learning rate")] = Settings.rate,
    warm_up: Annotated[float, typer.Option(help="Share of the training")] = Settings.warm_up,
    ema: Annotated[float, typer.Option(help="Decay of averaged weights, 0: none")] = Settings.ema,
    bf16: bool = False,
    seed: int = 0,
    device: str = "cpu",
    score_prompts: Annotated[int, typer.Option(help="Held-out prompts a task")] = 400,
) -> None:
    """Train a masked-diffusion model on self-checking tasks; the scores go to stdout."""
    shape = Shape(width, layers, heads, mlp)
    chosen = parse_tasks(tasks)
    settings = Settings(shape, chosen, steps, minutes, batch, rate, warm_up, ema, bf16, seed)
    checkpoint = out / ".training" / "checkpoint.safetensors"
    try:
        known = checkpoint.exists()
        progress = resume(checkpoint, settings, device) if known else begin(settings, device)
    except UserError as error:
        typer.echo(f"error: {error}\n\nhint: {error.hint}", err=True)
        raise typer.Exit(1) from None
    train(settings, progress, device, checkpoint)
    finish(out, settings, progress, device, score_prompts)
    typer.echo((out / "training.json").read_text(), nl=False)


if __name__ == "__main__":
    typer.run(main)
