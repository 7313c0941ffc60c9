"""Our GPTQ and AWQ against another package's: error of the output, seconds and memory a linear.

Both get the same weights and the same inputs: correlated channels, one in 64 of them an outlier.
Both run with one thread, in a process of their own, and take turns for some rounds; seconds are
medians. The error is `tr(D H D^T) / tr(W H W^T)`, D what quantization changed and H the Hessian of
the inputs, computed here for both. Seconds include taking in the inputs. Memory is the peak beyond
what a process held with the inputs loaded.

The peer is not part of our environment: give the interpreter of one that has it.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from torch import Tensor

from exporter.tensor_files import read_header, write_tensors
from passes.weights.hessian import accumulate_hessian, output_error
from tools.quantize_worker import Ask, Reply, Request, started
from tools.random_checkpoint import DEVIATION, Preset
from tools.tables import markdown

DECAY = 6  # correlations fall to 1/e over a sixth of the channels
OUTLIERS, OUTLIER_SIZE = 64, 20.0  # one channel in 64 is 20 times as large


class Peer(StrEnum):
    GPTQMODEL = "gptqmodel"
    LLMCOMPRESSOR = "llmcompressor"

    @property
    def methods(self) -> list[str]:
        """What of it runs on a CPU, one linear at a time."""
        return ["gptq"] if self is Peer.GPTQMODEL else ["gptq", "awq"]


@dataclass(frozen=True)
class Linear:
    """A linear of a model shape."""

    name: str
    out: int
    width: int  # inputs


def linears(preset: Preset) -> list[Linear]:
    """One of each shape that a block has."""
    shape = preset.shape
    return [
        Linear("q", shape.width, shape.width),
        Linear("gate", shape.mlp, shape.width),
        Linear("down", shape.width, shape.mlp),
    ]


def write_problem(file: Path, linear: Linear, tokens: int) -> None:
    """A random weight w (out, in) and inputs x (tokens, in) with outlier channels."""
    draw = torch.Generator().manual_seed(linear.out + linear.width)
    width = linear.width
    mix = torch.randn(width, width, generator=draw) * torch.exp(
        -torch.arange(width) / (width / DECAY)
    )
    x = torch.randn(tokens, width, generator=draw) @ mix.T / width**0.5
    x[:, torch.randperm(width, generator=draw)[: width // OUTLIERS]] *= OUTLIER_SIZE
    weight = DEVIATION * torch.randn(linear.out, width, generator=draw)
    write_tensors(file, {"w": weight, "x": x})


def error_left(problem: Path, result: Path) -> float:
    """Relative squared error of the output of a quantized weight."""
    given, found = read_header(problem), read_header(result)
    x = given["x"].read()
    hessian = torch.zeros(x.shape[1], x.shape[1])
    accumulate_hessian(hessian, x, torch.ones(len(x)))
    approximation: Tensor = found["weight"].read()
    return output_error(given["w"].read(), approximation, hessian)


def race(workers: Sequence[Ask], requests: Sequence[Request], rounds: int) -> list[list[Reply]]:
    """All replies of each worker, who take turns. The first round, which is not kept, warms up."""
    replies: list[list[Reply]] = [[] for _ in workers]
    for number in range(rounds + 1):
        for worker, request, kept in zip(workers, requests, replies, strict=True):
            reply = worker(request)
            if number:
                kept.append(reply)
    return replies


def row(
    linear: Linear, method: str, errors: Sequence[float], replies: Sequence[Sequence[Reply]]
) -> dict[str, object]:
    """Ours, theirs, and ours over theirs."""
    seconds = [median(r.statistics + r.solve for r in one) for one in replies]
    solving = [median(r.solve for r in one) for one in replies]
    peaks = [max(r.peak for r in one) / 1e6 for one in replies]
    return {
        "method": method,
        "linear": f"{linear.name} {linear.out} x {linear.width}",
        "error": tuple(errors),
        "error ratio": errors[0] / errors[1],
        "seconds": tuple(seconds),
        "seconds ratio": seconds[0] / seconds[1],
        "of these solving": tuple(solving),
        "peak MB": tuple(peaks),
    }


def measure(
    workers: Sequence[Ask], linear: Linear, template: Request, rounds: int, tokens: int
) -> dict[str, object]:
    """One row: a linear, by one method."""
    problem = Path(template.problem)
    write_problem(problem, linear, tokens)
    results = [problem.with_name(f"result-{number}.safetensors") for number in range(len(workers))]
    requests = [Request(**{**vars(template), "result": str(result)}) for result in results]
    replies = race(workers, requests, rounds)
    errors = [error_left(problem, result) for result in results]
    return row(linear, template.method, errors, replies)


def main(
    peer: Annotated[Peer, typer.Option(help="Package to compare with.")] = Peer.LLMCOMPRESSOR,
    python: Annotated[Path, typer.Option(help="Interpreter that has it.")] = Path(sys.executable),
    preset: Annotated[Preset, typer.Option(help="Shape of the linears.")] = Preset.M300,
    bits: Annotated[int, typer.Option(min=2, max=8)] = 4,
    group: Annotated[int, typer.Option(min=1)] = 128,
    damping: Annotated[float, typer.Option(min=1e-6)] = 0.01,
    tokens: Annotated[int, typer.Option(min=1, help="Calibration tokens.")] = 8192,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print a row a method and linear, ours … theirs, and the medians of the ratios."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    with TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        commands = {
            "ours": [sys.executable, "-m", "tools.quantize_ours"],
            "theirs": [str(python), "-m", "tools.quantize_peers", peer.value],
        }
        workers = [
            stack.enter_context(started(command, scratch / f"{name}.log"))
            for name, command in commands.items()
        ]
        for method in peer.methods:
            template = Request(
                str(scratch / "problem.safetensors"), "", method, bits, group, damping
            )
            rows += [measure(workers, one, template, rounds, tokens) for one in linears(preset)]
    medians = {
        f"{method} {key}": median(float(str(r[key])) for r in rows if r["method"] == method)
        for method in peer.methods
        for key in ("error ratio", "seconds ratio")
    }
    if as_json:
        typer.echo(json.dumps({"peer": peer.value, "rows": rows, "medians": medians}, indent=1))
        return
    typer.echo(f"ours … {peer.value}, {bits} bits, groups of {group}, {tokens} tokens\n")
    typer.echo(markdown(rows))
    typer.echo("\nmedians: " + ", ".join(f"{name} {value:.3g}" for name, value in medians.items()))


if __name__ == "__main__":
    typer.run(main)
