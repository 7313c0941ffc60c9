"""What rounding probabilities costs attention, by how many keys share a query's attention.

Scores are drawn with a standard deviation, values with a mean a channel, both normal; what is told
is the error of probabilities times values relative to the exact product, by the Euclidean norm
over 64 queries, all else in float64. Numbers are medians over seeds, with the least and the most.
"""

from statistics import median
from typing import Annotated, Literal

import torch
import typer

from passes.activations.attention import AttentionGrid, quantize_probabilities
from tools.tables import Row, render

HEADS = {"diffuse": 0.5, "mixed": 2.0, "sharp": 6.0}  # standard deviations of scores
QUERIES, CHANNELS = 64, 64
SCALES: tuple[Literal["static", "row"], ...] = ("static", "row")


def error(seed: int, keys: int, spread: float, grid: AttentionGrid) -> float:
    """The relative error of one draw."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(QUERIES, keys, generator=generator, dtype=torch.float64) * spread
    means = torch.randn(CHANNELS, generator=generator, dtype=torch.float64)
    v = torch.randn(keys, CHANNELS, generator=generator, dtype=torch.float64) + means
    p = scores.softmax(-1)
    exact = p @ v
    off: torch.Tensor = (quantize_probabilities(p, grid) @ v - exact).norm() / exact.norm()
    return float(off)


def row(head: str, keys: int, bits: int, seeds: int) -> Row:
    """A line of the table, in percent."""
    found: dict[str, object] = {"head": head, "keys": keys, "bits": bits}
    for scale in SCALES:
        grid = AttentionGrid(p_bits=bits, p_scale=scale)
        errors = [100 * error(seed, keys, HEADS[head], grid) for seed in range(seeds)]
        found[f"{scale}: error %"] = median(errors)
        found[f"{scale}: least … most"] = (min(errors), max(errors))
    return found


def main(
    keys: Annotated[list[int] | None, typer.Option(help="Repeatable.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Repeatable: 8, 4.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print the error of each kind of head, number of keys and bits."""
    table = [
        row(head, many, each, seeds)
        for each in bits or (8, 4)
        for head in HEADS
        for many in keys or (64, 256, 1024, 4096)
    ]
    typer.echo(render(table, as_json))


if __name__ == "__main__":
    typer.run(main)
