"""What a call with a cache takes, as a share of a call on the whole canvas.

Each round makes every kind of call once, in turn. Numbers are medians over the rounds; shares are
taken within a round before. All calls ask for the same window, a block in the middle of the canvas,
so that the model's head takes the same in each. Weights are random and rounded to nearest: speed
does not depend on the values.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from exporter.machine import cpu_cores
from exporter.quant_options import QuantOptions
from exporter.runtime.bundle import Bundle, read_bundle
from exporter.runtime.session import Cache, Session
from exporter.runtime.session_ort import open_session
from tools.random_checkpoint import Preset, write_checkpoint
from tools.tables import markdown

WANTED = frozenset({"id1", "rest"})
Calls = dict[str, Callable[[], None]]


def make_bundle(preset: Preset, recipe: str, kv_bits: int, scratch: Path) -> Bundle:
    """A bundle of a random model."""
    write_checkpoint(scratch / "model", preset.shape)
    options = BuildOptions(
        recipe,
        QuantOptions(kv_bits=kv_bits),
        decode=DecodeOptions(gen_length=8, steps=1, block_length=8),  # for the gate alone
        gate_prompts=1,
        gate=False,
    )
    build(scratch / "model", "cpu", scratch / "bundle", options)
    return read_bundle(scratch / "bundle")


def make_calls(bundle: Bundle, length: int, block: int, threads: int, level: int) -> Calls:
    """By name; `length` positions, of which the block in the middle is asked for."""
    plain, cached = (
        open_session(bundle, False, WANTED, None, threads, level, kept) for kept in (False, True)
    )
    kept, lo = cached.new_cache(1, length), length // 2
    ids = np.random.default_rng(0).integers(3, bundle.model.vocab_size, (1, length))
    shown, window = np.ones((1, length), np.bool_), np.arange(lo, lo + block)
    bias = np.zeros((2, len(bundle.model.special_ids)), np.float32)

    def call(session: Session, memory: Cache | None, start: int, stop: int) -> Callable[[], None]:
        def run() -> None:
            fed = ids[:, start:stop]
            session.forward(fed, shown, window, bias, None, None, WANTED, memory, start)

        return run

    return {
        "without a cache": call(plain, None, 0, length),
        "refresh": call(cached, kept, 0, length),
        "prefix: from the block on": call(cached, kept, lo, length),
        "two blocks": call(cached, kept, lo, min(lo + 2 * block, length)),
        "dual: the block": call(cached, kept, lo, lo + block),
    }


def race(calls: Calls, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call by round, after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                taken[name].append(time.perf_counter() - start)
    return taken


def rows(taken: dict[str, list[float]]) -> list[dict[str, object]]:
    """Medians, and shares of the first call of the same round."""
    whole = next(iter(taken.values()))
    found: list[dict[str, object]] = []
    for name, seconds in taken.items():
        shares = [one / of for one, of in zip(seconds, whole, strict=True)]
        found.append(
            {
                "call": name,
                "ms": 1e3 * median(seconds),
                "share of the whole": median(shares),
                "least … most": (min(shares), max(shares)),
            }
        )
    return found


def main(
    model: Annotated[Preset, typer.Option()] = Preset.M300,
    recipe: Annotated[str, typer.Option()] = "w4a16-rtn",
    kv_bits: Annotated[int, typer.Option(help="Of the cache: 16, 8 or 4.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Of the canvas.")] = 256,
    block: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    level: Annotated[int, typer.Option(help="Accuracy level of MatMulNBits: 0 or 4.")] = 4,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print how long calls take that feed a whole canvas, and parts of it over a cache."""
    count = threads or cpu_cores()
    with TemporaryDirectory() as scratch:
        bundle = make_bundle(model, recipe, kv_bits, Path(scratch))
        found = rows(race(make_calls(bundle, length, block, count, level), rounds))
    if as_json:
        typer.echo(json.dumps({"threads": count, "rows": found}, indent=1))
        return
    typer.echo(
        f"{count} threads, medians of {rounds} rounds, {length} positions, a block {block}\n"
    )
    typer.echo(markdown(found))


if __name__ == "__main__":
    typer.run(main)
