"""Resident memory of a running bundle against what its weights and its cache take.

Each bundle decodes one prompt in a process of its own (decode.py) that is watched from outside. The
budget is the bundle's linears as they are stored, an 8-bit head and embedding, keys and values of
the canvas in fp32, and 150 MB for Python, ONNX Runtime, activations and everything else.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from exporter.quant_options import QuantOptions
from tools.memory_watch import watch
from tools.random_checkpoint import Preset, write_checkpoint
from tools.tables import render

REST = 150e6  # bytes beside weights and cache


def budget(folder: Path, preset: Preset, kept: int, embed_bits: int) -> float:
    """Bytes that a bundle may take while it runs, with keys and values of `kept` positions."""
    shape, stored = preset.shape, (folder / "graphs" / "weights.bin").stat().st_size
    table = shape.vocab * shape.width
    embedding = embed_bits // 8 * table  # in the file; the budget has it in 8 bits
    keys_values = 2 * 4 * shape.layers * shape.width * kept
    return stored - embedding + table + keys_values + REST


def main(
    recipe: Annotated[list[str], typer.Option(help="Repeatable.")] = ["w4a16-rtn", "w4a8-rtn"],  # noqa: B006
    model: Annotated[Preset, typer.Option()] = Preset.M300,
    prompt: Annotated[int, typer.Option()] = 128,
    gen_length: Annotated[int, typer.Option()] = 128,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print megabytes at the peak of a whole decoding, loading included, beside the budget."""
    rows: list[dict[str, object]] = []
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoint(folder / "model", model.shape)
        for name in recipe:
            for embed_bits in (16, 8):
                out = folder / f"{name}-{embed_bits}"
                options = BuildOptions(
                    name, QuantOptions(samples=4, embed_bits=embed_bits),
                    decode=DecodeOptions(gen_length=8, steps=1, block_length=8),
                    calib_prompts=2, gate_prompts=1, gate=False, work=folder / "work",
                )  # fmt: skip
                build(folder / "model", "cpu", out, options)
                for cache in ("none", "dual"):
                    rows.append(_row(out, model, cache, prompt, gen_length, embed_bits))
    typer.echo(render(rows, as_json))


def _row(
    bundle: Path, model: Preset, cache: str, prompt: int, gen_length: int, embed_bits: int
) -> dict[str, object]:
    ids = ",".join(str(3 + number) for number in range(prompt))
    block = min(32, gen_length)
    settings = f"--gen-length {gen_length} --steps {gen_length // block} --block-length {block}"
    command = [sys.executable, str(bundle / "decode.py"), "--ids", ids, "--no-stream",
               "--no-early-stop", "--cache", cache, *settings.split()]  # fmt: skip
    seen = watch(command)
    kept = 0 if cache == "none" else prompt + gen_length
    allowed = budget(bundle, model, kept, embed_bits)
    return {
        "bundle": bundle.name.removesuffix(f"-{embed_bits}"),
        "embedding": f"{embed_bits} bits",
        "cache": cache,
        "resident MB": seen.high_water / 1e6,
        "of it anonymous": seen.peak.anonymous / 1e6,
        "budget MB": allowed / 1e6,
        "% of budget": 100 * seen.high_water / allowed,
    }


if __name__ == "__main__":
    typer.run(main)
