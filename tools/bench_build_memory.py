"""Peak memory of `dqexport build` against the number of layers: does it stay a few blocks?

Builds random checkpoints of one shape and several depths, each in a process of its own, and reads
/proc every 50 ms (Linux). A build must hold a few blocks and its calibration activations; with
more layers it must not grow. RSS counts file pages that the system can drop, `anonymous` does not.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

from exporter.checkpoint import open_checkpoint
from exporter.families import block_shapes
from tools.memory_watch import Watched, watch
from tools.random_checkpoint import Preset, write_checkpoint
from tools.tables import markdown

BASE = 500e6  # bytes that Python, torch and ONNX Runtime may take
BUILD = (sys.executable, "-c", "from exporter.cli import main; main()", "build")


@dataclass(frozen=True)
class Load:
    """What is calibrated on."""

    recipe: str
    prompt: int  # tokens of a prompt
    length: int  # tokens of an answer
    steps: int
    prompts: int
    samples: int

    @property
    def canvas(self) -> int:
        return self.prompt + self.length


def build_command(checkpoint: Path, out: Path, calib: Path, load: Load) -> list[str]:
    options = {
        "--out": out,
        "--recipe": load.recipe,
        "--calib": calib,
        "--calib-prompts": load.prompts,
        "--samples": load.samples,
        "--gate-prompts": 1,
        "--gen-length": load.length,
        "--block-length": load.length,
        "--steps": load.steps,
    }
    parts = [str(part) for pair in options.items() for part in pair]
    return [*BUILD, str(checkpoint), *parts, "--no-gate"]


def write_prompts(file: Path, load: Load, vocab: int) -> None:
    """Prompts of random ids, one more than are calibrated on: the gate's."""
    draw = np.random.default_rng(0)
    rows = draw.integers(3, vocab, (load.prompts + 1, load.prompt)).tolist()
    file.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))


def measure(preset: Preset, layers: int, load: Load, scratch: Path) -> tuple[Watched, float]:
    """A watched build of so many layers, and its budget in bytes."""
    checkpoint, calib = scratch / f"model-{layers}", scratch / "prompts.jsonl"
    write_checkpoint(checkpoint, replace(preset.shape, layers=layers))
    write_prompts(calib, load, preset.shape.vocab)
    watched = watch(build_command(checkpoint, scratch / f"bundle-{layers}", calib, load))
    return watched, budget(checkpoint, load)


def budget(checkpoint: Path, load: Load) -> float:
    """Bytes of two blocks in fp32, of the calibration activations, and BASE."""
    spec = open_checkpoint(checkpoint).spec
    block = 4 * sum(int(np.prod(shape)) for shape in block_shapes(spec, 0).values())
    return 2 * block + 4 * load.samples * load.canvas * spec.width + BASE


def row(layers: int, watched: Watched, allowed: float) -> dict[str, object]:
    peak = watched.peak
    return {
        "layers": layers,
        "peak MB": peak.resident / 1e6,
        "anonymous MB": peak.anonymous / 1e6,
        "main process, VmHWM MB": watched.high_water / 1e6,
        "budget MB": allowed / 1e6,
        "of budget": peak.resident / allowed,
        "at its peak in": watched.worst_stage,
        "seconds": watched.seconds,
        "MB by stage": "; ".join(
            f"{name} {one.resident / 1e6:.0f}" for name, one in watched.stages.items()
        ),
    }


def slope(layers: Sequence[int], peaks: Sequence[int]) -> float | None:
    """Growth a layer of the least-squares line; None with one depth."""
    return float(np.polyfit(layers, peaks, 1)[0]) if len(set(layers)) > 1 else None


DEPTHS = [4, 8, 16]


def main(
    layers: Annotated[list[int], typer.Option(min=1, help="Depths; repeatable.")] = DEPTHS,
    preset: Preset = Preset.M300,
    recipe: str = "w4a16-dllmquant",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 128,
    gen_length: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Calls of a roll-out.")] = 16,
    calib_prompts: Annotated[int, typer.Option(min=1)] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Calibration states.")] = 128,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print the peak of each depth, its budget, and the growth a layer."""
    load = Load(recipe, prompt, gen_length, steps, calib_prompts, samples)
    rows, peaks = [], []
    for depth in layers:
        with TemporaryDirectory() as scratch:
            watched, allowed = measure(preset, depth, load, Path(scratch))
        rows.append(row(depth, watched, allowed))
        peaks.append(watched.peak)
    growth = slope(layers, [peak.resident for peak in peaks])
    anonymous = slope(layers, [peak.anonymous for peak in peaks])
    if as_json:
        found = {"rows": rows, "bytes a layer": growth, "anonymous bytes a layer": anonymous}
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(markdown(rows))
    if growth is not None and anonymous is not None:
        text = f"{growth / 1e6:.3g} MB, of these anonymous {anonymous / 1e6:.3g} MB"
        typer.echo(f"\ngrowth a layer: {text}")


if __name__ == "__main__":
    typer.run(main)
