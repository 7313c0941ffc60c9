"""Whole answers on a large shape: plain full-canvas loops against caches, bits, tokens a call.

The plain loops are float32, and torch in bfloat16; they feed the whole canvas and commit one token
a call, as the upstream loop does by default. Weights are random, so a threshold would commit at
random: how many tokens a call a rule commits at equal accuracy is to be measured on a trained model
(`dqexport tune`, tools/bench_rules.py) and given here; quotas then spend exactly so many calls. All
contestants take turns; an answer's time is the median call of each kind times how often the loop
makes it.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
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
from exporter.runtime.bundle import Bundle, read_bundle
from exporter.runtime.candidates import wanted
from exporter.runtime.loop import decode
from exporter.runtime.session import Session
from exporter.runtime.session_ort import open_session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from tools import torch_loop
from tools.random_checkpoint import Preset, write_checkpoint
from tools.tables import markdown


@dataclass(frozen=True)
class Kind:
    """A bundle and how it runs."""

    name: str
    recipe: str
    level: int  # of MatMulNBits
    operators: bool  # of our own


KINDS = (
    Kind("fp32", "fp32", 0, False),
    Kind("w4a16, level 4", "w4a16-rtn", 4, False),
    Kind("w4a16 for level 4, own operators", "w4a16-rtn", 4, True),
    Kind("w4a8, own operators", "w4a8-rtn", 0, True),
)
TORCH = "torch bf16, cache none, 1 a call"


class Contestant:
    """A bundle with settings; counts its calls by how many positions they feed."""

    def __init__(self, name: str, bundle: Bundle, settings: Settings, session: Session) -> None:
        self.name, self.settings = name, settings
        self._bundle, self._session = bundle, session
        self.seconds: dict[int, list[float]] = defaultdict(list)  # by positions that were fed
        self.calls: dict[int, int] = {}

    def run(self, prompt: list[int], most: int | None) -> None:
        """Decode, or make the first `most` calls, and note what each of them takes."""
        model = self._bundle.model
        canvas, start, mask = make_canvas([prompt], self.settings.gen_length, model)
        counts: dict[int, int] = defaultdict(int)
        before = time.perf_counter()
        for step in decode(self._session, model, self.settings, canvas, start, mask):
            now = time.perf_counter()
            fed = step.stop - step.start
            self.seconds[fed].append(now - before)
            counts[fed] += 1
            before = time.perf_counter()
            if sum(counts.values()) == most:
                break
        if most is None or not self.calls:
            self.calls = dict(counts)

    def answer(self, calls: int | None) -> float:
        """Seconds of a whole answer; `calls` where the run was cut short, all of one kind."""
        if calls is not None:
            (times,) = self.seconds.values()
            return calls * median(times)
        return sum(count * median(self.seconds[fed]) for fed, count in self.calls.items())


def main(
    model: Annotated[Preset, typer.Option()] = Preset.M300,
    prompt_length: Annotated[int, typer.Option("--prompt")] = 128,
    gen_length: Annotated[int, typer.Option()] = 128,
    block: Annotated[int, typer.Option()] = 32,
    tokens: Annotated[list[int] | None, typer.Option(help="A call; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    plain_calls: Annotated[int, typer.Option(min=1, help="Of the plain loop, a round.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print seconds an answer, and how many times as fast as the plain loop."""
    count = threads or cpu_cores()
    base = Settings(gen_length=gen_length, block_length=block, early_stop=False)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder / "model", model.shape)
        contestants = []
        for kind in KINDS:
            options = BuildOptions(
                kind.recipe, QuantOptions(samples=4),
                decode=DecodeOptions(gen_length=8, steps=1, block_length=8),
                calib_prompts=2, gate_prompts=1, gate=False,
                accuracy_level=kind.level, operators=kind.operators, work=folder / "work",
            )  # fmt: skip
            build(folder / "model", "cpu", folder / kind.name, options)
            bundle = read_bundle(folder / kind.name)
            for cache in ("none", "dual"):
                session = open_session(
                    bundle, False, wanted(base), None, count, kind.level, cache != "none"
                )
                for each in [1] if cache == "none" else [1, *(tokens or [2, 4])]:
                    settings = replace(base, cache=cache, steps=gen_length // each)
                    name = f"{kind.name}, cache {cache}, {each} a call"
                    contestants.append(Contestant(name, bundle, settings, session))
        vocab = bundle.model.vocab_size
        prompt = np.random.default_rng(0).integers(3, vocab, prompt_length).tolist()
        torch.set_num_threads(count)
        plain = torch_loop.load(open_checkpoint(folder / "model"), torch.bfloat16)
        halves = []
        for _ in range(rounds):
            for one in contestants:
                one.run(prompt, plain_calls if one.settings.cache == "none" else None)
            start = time.perf_counter()
            torch_loop.decode(plain, prompt, gen_length, block, gen_length, plain_calls)
            halves.append((time.perf_counter() - start) / plain_calls)
    answers = {
        one.name: one.answer(gen_length if one.settings.cache == "none" else None)
        for one in contestants
    }
    answers[TORCH] = gen_length * median(halves)
    rows: list[dict[str, object]] = [
        {
            "loop": name,
            "s an answer": seconds,
            "tokens/s": gen_length / seconds,
            "times the plain loop": answers[contestants[0].name] / seconds,
            "times torch bf16": answers[TORCH] / seconds,
        }
        for name, seconds in answers.items()
    ]
    if as_json:
        typer.echo(json.dumps({"threads": count, "rows": rows}, indent=1))
        return
    typer.echo(
        f"{count} threads, medians of {rounds} rounds, prompt {prompt_length}, answer {gen_length},"
        f" blocks of {block}\n"
    )
    typer.echo(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
