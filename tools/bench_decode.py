"""Decoding speed: the emitted loop over ONNX Runtime against a plain torch loop.

All contestants decode the same prompt with the same number of model calls and of threads, in turn,
for some rounds; numbers are medians over the rounds. `host` is what a step of the emitted loop
takes outside of the runtime. The ideal is the larger of reading every weight that a forward needs
once at the measured bandwidth, and its multiply-adds at the measured peak of the contestant's
arithmetic (int8 at accuracy level 4, where ONNX Runtime quantizes activations, and in operators of
our own; attention counted the same). Random checkpoints are quantized by rounding: speed does not
depend on the values.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer

from exporter.build import BuildOptions, build
from exporter.checkpoint import open_checkpoint
from exporter.decoding import DecodeOptions
from exporter.machine import cpu_cores
from exporter.quant_options import QuantOptions
from exporter.runtime.settings import Settings
from exporter.tasks import reference_folder
from tools.decode_contestants import Case, Contestant, emitted, multiply_adds, plain
from tools.machine_peaks import Peaks, measure_peaks
from tools.random_checkpoint import Preset, write_checkpoint
from tools.tables import markdown

SECONDS_A_ROUND = 0.3  # short decodings are repeated for at least so long


def race(case: Case, contestants: Sequence[Contestant], rounds: int) -> None:
    """Every contestant in turn, `rounds` times."""
    for _ in range(rounds):
        for one in contestants:
            start, runs, inside = time.perf_counter(), 0, 0.0
            while runs == 0 or time.perf_counter() - start < SECONDS_A_ROUND:
                inside += one.run()
                runs += 1
            whole = time.perf_counter() - start
            one.steps.append(whole / runs / case.calls)
            one.hosts.append((whole - inside) / runs / case.calls)


def row(case: Case, one: Contestant, peaks: Peaks) -> dict[str, object]:
    """The medians of a contestant, and the floor under them."""
    length = len(case.prompt) + case.settings.gen_length
    step, host = median(one.steps), median(one.hosts)
    work = multiply_adds(case.checkpoint.spec, length, one.head_rows)
    peak: float = getattr(peaks, one.arithmetic)
    reading, computing = one.weight_bytes / peaks.read, work / peak
    ours = not one.name.startswith("torch")
    return {
        "model": case.name,
        "contestant": one.name,
        "ms a step": 1e3 * step,
        "least … most": (1e3 * min(one.steps), 1e3 * max(one.steps)),
        "tokens/s": case.tokens_a_step / step,
        "host ms": 1e3 * host if ours else None,
        "host %": 100 * host / step if ours else None,
        "weights MB": one.weight_bytes / 1e6,
        "G multiply-adds": work / 1e9,
        "ideal ms": 1e3 * max(reading, computing),
        "bound by": "memory" if reading > computing else one.arithmetic,
        "times ideal": step / max(reading, computing),
    }


BUNDLES = {  # recipe, accuracy level
    "fp32": ("fp32", 0), "w4a16": ("w4a16-rtn", 0), "w4a16 for level 4": ("w4a16-rtn", 4),
    "w8a8": ("w8a8-rtn", 0), "w4a8": ("w4a8-rtn", 0),
}  # fmt: skip


def bundles(case: Case, scratch: Path) -> list[Path]:
    """A bundle of the case's checkpoint for each of BUNDLES."""
    made = []
    shortest = DecodeOptions(gen_length=8, steps=1, block_length=8)  # only the gate decodes with it
    for name, (recipe, level) in BUNDLES.items():
        options = BuildOptions(
            recipe,
            QuantOptions(samples=4),
            decode=shortest,
            calib_prompts=2,  # speed does not depend on the values
            gate_prompts=1,
            gate=False,
            accuracy_level=level,
            work=scratch / "work",
        )
        build(case.checkpoint.folder, "cpu", scratch / name, options)
        made.append(scratch / name)
    return made


def measure(case: Case, threads: int, rounds: int, peaks: Peaks) -> list[dict[str, object]]:
    """One row a contestant."""
    with TemporaryDirectory() as folder:
        floats, packed, fast, bytes8, bytes4 = bundles(case, Path(folder))
        contestants = [
            emitted(case, floats, 0, threads),
            emitted(case, packed, 0, threads, own=False),
            emitted(case, packed, 4, threads, own=False),
            emitted(case, packed, 0, threads),
            emitted(case, fast, 4, threads),
            emitted(case, bytes8, 0, threads),
            emitted(case, bytes4, 0, threads),
            plain(case, torch.float32, "fp32"),
            plain(case, torch.bfloat16, "bf16"),
        ]
        race(case, contestants, rounds)
        return [row(case, one, peaks) for one in contestants]


def make_case(
    name: str, folder: Path, prompt: int, length: int, block: int, steps: int, calls: int
) -> Case:
    """A case with a prompt of random ids. Nothing ends it early."""
    checkpoint = open_checkpoint(folder)
    plain_ids = np.arange(3, checkpoint.spec.vocab_size)
    ids = np.random.default_rng(0).choice(plain_ids, prompt).tolist()
    settings = Settings(gen_length=length, block_length=block, steps=steps, early_stop=False)
    return Case(name, checkpoint, ids, settings, min(calls, steps))


class Model(StrEnum):
    REFERENCE = "reference"
    TINY = "tiny"
    M300 = "300m"


def cases(models: Sequence[Model], steps: int, calls: int, scratch: Path) -> list[Case]:
    """The reference model as it is used, random models with a prompt and an answer of 128 tokens.

    The tiny one is for tests: 16 tokens each.
    """
    found = []
    for model in models:
        if model is Model.REFERENCE:
            found.append(make_case(model, reference_folder(), 11, 8, 8, 8, 8))
            continue
        preset = Preset(model)
        write_checkpoint(scratch / model, preset.shape)
        length, block = (16, 8) if preset is Preset.TINY else (128, 32)
        found.append(make_case(model, scratch / model, length, length, block, steps, calls))
    return found


MODELS = [Model.REFERENCE, Model.M300]


def main(
    model: Annotated[list[Model], typer.Option(help="Repeatable.")] = MODELS,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Of a whole answer of random models.")] = 32,
    calls: Annotated[int, typer.Option(min=1, help="How many of them are run.")] = 8,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print medians of the seconds a step and tokens/s = tokens committed a step / step time."""
    count = threads or cpu_cores()
    torch.set_num_threads(count)
    peaks = measure_peaks()
    with TemporaryDirectory() as scratch:
        rows = [
            row
            for case in cases(model, steps, calls, Path(scratch))
            for row in measure(case, count, rounds, peaks)
        ]
    if as_json:
        typer.echo(json.dumps({"threads": count, "peaks": asdict(peaks), "rows": rows}, indent=1))
        return
    rates = {name: f"{value / 1e9:.3g}" for name, value in asdict(peaks).items()}
    typer.echo(
        f"{count} threads; G multiply-adds/s: fp32 {rates['fp32']}, bf16 {rates['bf16']}, "
        f"int8 {rates['int8']}; read {rates['read']} GB/s; medians of {rounds} rounds\n"
    )
    typer.echo(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
