"""What a build will need, in bytes, before any work; refuses with numbers what cannot fit."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import UserError
from exporter.families import Spec, model_shapes
from exporter.model import GROUPS, LINEARS
from exporter.recipes import Recipe
from passes.numerics import group_count
from passes.weights.lorc import Lorc
from targets import Target

FLOAT_BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class Needs:
    """Estimated sizes in bytes."""

    weights: int  # of the bundle's graphs
    work: int  # quantized blocks on disk while building: one byte a weight, and scales
    activations: int  # of one forward over the longest canvas, one sequence

    @property
    def disk(self) -> int:
        return self.weights + self.work


def estimate(spec: Spec, recipe: Recipe, canvas: int) -> Needs:
    """Sizes for a model, a recipe, and canvases of at most `canvas` tokens."""
    compute, storage = FLOAT_BYTES[recipe.compute], FLOAT_BYTES[recipe.storage]
    weights = work = 0.0
    for key, shape in model_shapes(spec).items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        name = key.rpartition(".")[2]
        if name in LINEARS and recipe.weights is not None:
            bits, beside = stored_bits(recipe, key, shape)
            weights += count * (bits + beside) / 8
            work += count * (8 + beside) / 8
        elif name == "embed":
            weights += count * (1 if recipe.embed_bits == 8 else storage)
        elif name != "head":
            weights += count * compute
    head = spec.vocab_size * spec.width
    quantized = recipe.head_bits / 8 + 2 / max(recipe.head_group, 1)
    weights += head * (quantized if recipe.head_bits < 16 else compute)
    rows = 4 * spec.width + 3 * spec.mlp_width + canvas * spec.heads
    return Needs(int(weights), int(work), rows * canvas * compute)


def bits_a_weight(spec: Spec, recipe: Recipe) -> float:
    """What a weight of the blocks' linears takes on average, with scales and corrections."""
    if recipe.weights is None:
        return 8.0 * FLOAT_BYTES[recipe.compute]
    total = bits = 0.0
    for key, shape in model_shapes(spec).items():
        if key.rpartition(".")[2] in LINEARS:
            total += shape[0] * shape[1]
            bits += shape[0] * shape[1] * sum(stored_bits(recipe, key, shape))
    return bits / total


def rank(recipe: Recipe) -> int:
    """That of the low-rank corrections beside the linears; 0 for none."""
    return max((step.rank for step in recipe.blocks if isinstance(step, Lorc)), default=0)


def stored_bits(recipe: Recipe, key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Bits of a weight of `<block>.<linear>` (out, in), and its share of scales and correction."""
    block, _, name = key.partition(".")
    group = next(group for group in GROUPS if name in group.linears)
    grid = recipe.on_grids(int(block), group).grid
    assert grid is not None
    out, width = shape
    groups = group_count(width, grid.columns(width))
    # on two levels a group has a whole number of one byte, and the row a scale
    scales = 16 * groups if grid.levels == 1 else 8 * groups + 16
    thin = 16 * min(rank(recipe), out, width) * (out + width)
    return grid.bits, scales / width + thin / (out * width)


def check_fits(needs: Needs, target: Target, out: Path) -> None:
    """Raises UserError when the disk or the target's memory is too small."""
    place = next(p for p in (out, *out.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needs.disk > free:
        raise UserError(
            f"The build needs about {_gib(needs.disk)} of disk, `{place}` has {_gib(free)}",
            "Free some space, or build on another disk with -o",
        )
    if target.memory_gib is None:
        return
    have = int(target.memory_gib * 2**30)
    if needs.weights + needs.activations > have:
        raise UserError(
            f"The model needs {_gib(needs.weights)} for weights and {_gib(needs.activations)} for "
            f"activations, {target.title} has {_gib(have)}",
            "Use a smaller model, a recipe with fewer bits, or a smaller --max-canvas",
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
