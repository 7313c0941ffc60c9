"""What a build will need, in bytes, before any work; refuses with numbers what cannot fit."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import UserError
from exporter.families import Spec, block_shapes
from exporter.linear_groups import EXACT, group_of_each
from exporter.recipes import Recipe
from passes.base import LinearGroup
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
    engines: int = 0  # that are built here: each holds the weights

    @property
    def disk(self) -> int:
        return self.weights + self.engines + self.work


def estimate(spec: Spec, recipe: Recipe, canvas: int, engines: int = 0) -> Needs:
    """Sizes for a model, a recipe, canvases of at most `canvas` tokens, and a count of engines."""
    compute, storage = FLOAT_BYTES[recipe.compute], FLOAT_BYTES[recipe.storage]
    weights = work = 0.0
    weights += spec.vocab_size * spec.width * (1 if recipe.embed_bits == 8 else storage)
    weights += spec.width * compute  # the last norm
    for index in range(spec.layers):
        linears = group_of_each(spec, index)
        for name, shape in block_shapes(spec, index).items():
            count = math.prod(shape)
            if name in linears and recipe.weights is not None:
                bits, beside = stored_bits(recipe, index, linears[name], shape)
                weights += count * (bits + beside) / 8
                work += count * (8 + beside) / 8
            else:
                weights += count * (4 if name in EXACT else compute)
    head = spec.vocab_size * spec.width
    quantized = recipe.head_bits / 8 + 2 / max(recipe.head_group, 1)
    weights += head * (quantized if recipe.head_bits < 16 else compute)
    rows = 4 * spec.width + 3 * spec.mlp_width + canvas * spec.heads
    if spec.experts is not None:  # what enters and leaves the experts of all tokens
        rows += spec.experts.per_token * (2 * spec.width + 3 * spec.experts.width)
    return Needs(int(weights), int(work), rows * canvas * compute, engines * int(weights))


def cache_bytes(spec: Spec, recipe: Recipe) -> int:
    """What keys and values of one position take in all blocks when they are kept between calls."""
    compute = FLOAT_BYTES[recipe.compute]
    vector = spec.head_dim * compute
    if recipe.kv_bits < 16:
        vector = spec.head_dim * recipe.kv_bits // 8 + compute  # and a scale
    return 2 * spec.layers * spec.kv_heads * vector


def bits_a_weight(spec: Spec, recipe: Recipe) -> float:
    """What a weight of the blocks' linears takes on average, with scales and corrections."""
    if recipe.weights is None:
        return 8.0 * FLOAT_BYTES[recipe.compute]
    total = bits = 0.0
    for index in range(spec.layers):
        shapes = block_shapes(spec, index)
        for name, group in group_of_each(spec, index).items():
            count = math.prod(shapes[name])
            total += count
            bits += count * sum(stored_bits(recipe, index, group, shapes[name]))
    return bits / total


def rank(recipe: Recipe) -> int:
    """That of the low-rank corrections beside the linears; 0 for none."""
    return max((step.rank for step in recipe.blocks if isinstance(step, Lorc)), default=0)


def stored_bits(
    recipe: Recipe, block: int, group: LinearGroup, shape: tuple[int, ...]
) -> tuple[float, float]:
    """Bits of a weight of a linear (out, in) of `group`, and its share of scales and correction."""
    grid = recipe.on_grids(block, group).grid
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
