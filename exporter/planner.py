"""What a build will need, in bytes, before any work; refuses with numbers what cannot fit."""

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from exporter.errors import UserError
from exporter.families import Spec, block_shapes
from exporter.linear_groups import EXACT, group_of_each
from exporter.recipes import Recipe
from passes.activations.attention import FLOAT, AttentionGrid
from passes.base import LinearGroup
from passes.numerics import group_count
from passes.weights.lorc import Lorc
from targets import Target

FLOAT_BYTES = {"fp32": 4, "fp16": 2}
PROFILES = 4  # that an engine has at most: engine_plans.py
# Kernels in an engine, a profile and a block of the model. TensorRT for RTX 1.7.1, w4a16, SM 89:
# 3.8 and 4.8 MB a profile for models of 2 and 4 blocks of width 192, weights taken off.
CODE, CODE_A_BLOCK = 3 << 20, 1 << 19
SUGGESTIONS = 3  # of ways to make a model fit that a refusal names


@dataclass(frozen=True)
class Needs:
    """Estimated sizes in bytes."""

    weights: int  # of the bundle's graphs
    work: int  # quantized blocks on disk while building: one byte a weight, and scales
    activations: int  # of one forward over the longest canvas, one sequence
    engines: int = 0  # that are built here: each holds the weights
    cache: int = 0  # keys and values of the longest canvas, one sequence
    code: int = 0  # kernels in one engine, besides weights

    @property
    def disk(self) -> int:
        return self.weights + self.engines + self.work

    def memory(self, target: Target) -> dict[str, int]:
        """What decoding with one graph keeps in memory, by name."""
        named = {"weights": self.weights, "activations": self.activations, "the cache": self.cache}
        return named | ({"engine code": self.code} if target.engine_built != "none" else {})


def estimate(spec: Spec, recipe: Recipe, canvas: int, engines: int = 0) -> Needs:
    """Sizes for a model, a recipe, canvases of at most `canvas` tokens, and a count of engines.

    Activations: what lives at once in a block, which an engine's workspace holds as well. A token
    has its residual stream, normed input, queries and output (4 D), gate, up and their product
    (3 MLP widths), its row of scores (canvas · heads), and copies for each of its experts.
    """
    compute, storage = FLOAT_BYTES[recipe.compute], FLOAT_BYTES[recipe.storage]
    weights = work = 0.0
    weights += spec.vocab_size * spec.width * (1 if recipe.embed_bits == 8 else storage)
    weights += spec.width * compute  # the last norm
    for index in range(spec.layers):
        linears = group_of_each(spec, index)
        for name, shape in block_shapes(spec, index).items():
            count = math.prod(shape)
            if name in linears:
                weights += linear_bytes(recipe, index, linears[name], shape)
            else:
                weights += count * (4 if name in EXACT else compute)
            if name in linears and recipe.weights is not None:
                _, beside = stored_bits(recipe, index, linears[name], shape)
                work += count * (8 + beside) / 8
    weights += head_bytes(spec, recipe)
    rows = 4 * spec.width + 3 * spec.mlp_width + canvas * spec.heads
    if spec.experts is not None:  # what enters and leaves the experts of all tokens
        rows += spec.experts.per_token * (2 * spec.width + 3 * spec.experts.width)
    code = PROFILES * (CODE + CODE_A_BLOCK * spec.layers)
    return Needs(
        weights=int(weights),
        work=int(work),
        activations=rows * canvas * compute,
        engines=engines * (int(weights) + code),
        cache=canvas * cache_bytes(spec, recipe),
        code=code,
    )


def linear_bytes(recipe: Recipe, block: int, group: LinearGroup, shape: tuple[int, ...]) -> float:
    """What a linear (out, in) of `group` takes, scales and correction included."""
    if recipe.weights is None:
        return math.prod(shape) * FLOAT_BYTES[recipe.compute]
    return math.prod(shape) * sum(stored_bits(recipe, block, group, shape)) / 8


def head_bytes(spec: Spec, recipe: Recipe) -> float:
    """What the head takes, scales included."""
    quantized = recipe.head_bits / 8 + 2 / max(recipe.head_group, 1)
    each = quantized if recipe.head_bits < 16 else FLOAT_BYTES[recipe.compute]
    return spec.vocab_size * spec.width * each


def cache_bytes(
    spec: Spec, recipe: Recipe, grids: Sequence[AttentionGrid | None] | None = None
) -> int:
    """What keys and values of one position take in all blocks when they are kept between calls.

    `grids`: of attention in each block, once that is known; by default what the recipe says.
    """
    of_blocks = [recipe.attention] * spec.layers if grids is None else grids
    return sum(spec.kv_heads * _kept(spec, recipe, grid) for grid in of_blocks)


def _kept(spec: Spec, recipe: Recipe, grid: AttentionGrid | None) -> int:
    """A key and a value, with their scales: codes of attention have one for the key alone."""
    compute, bits = FLOAT_BYTES[recipe.compute], recipe.kv_bits
    whole, codes = spec.head_dim * compute, spec.head_dim * bits // 8
    if bits == FLOAT or (recipe.keeps_codes and (grid is None or grid.is_float)):
        return 2 * whole
    if not recipe.keeps_codes:
        return 2 * (codes + compute)
    assert grid is not None
    return codes + compute + (whole if grid.v_bits == FLOAT else codes)


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


def check_fits(
    needs: Needs, target: Target, out: Path, others: Iterable[tuple[str, Needs]] = ()
) -> None:
    """Raises UserError when the disk or the target's memory is too small.

    `others`: options, as they are typed, and what the model needs with them; those that fit are
    named.
    """
    place = next(p for p in (out, *out.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needs.disk > free:
        raise UserError(
            f"The build needs about {_gib(needs.disk)} of disk, `{place}` has {_gib(free)}",
            "Free some space, or build on another disk with -o",
        )
    if target.memory_gib is None or _fits(needs, target):
        return
    parts = needs.memory(target)
    told = ", ".join(f"{_gib(size)} for {name}" for name, size in parts.items())
    kept = f", of which its system keeps {target.reserved_gib:g} GiB" * (target.reserved_gib > 0)
    raise UserError(
        f"The model needs {_gib(sum(parts.values()))}: {told}. {target.title} has "
        f"{target.memory_gib:g} GiB{kept}",
        _what_fits(target, others),
    )


def _fits(needs: Needs, target: Target) -> bool:
    have = ((target.memory_gib or 0.0) - target.reserved_gib) * 2**30
    return sum(needs.memory(target).values()) <= have


def _what_fits(target: Target, others: Iterable[tuple[str, Needs]]) -> str:
    fitting = (
        f"`{options}` ({_gib(sum(needs.memory(target).values()))})"
        for options, needs in others
        if _fits(needs, target)
    )
    named = " or ".join(islice(fitting, SUGGESTIONS))
    return f"It fits with {named}" if named else "Use a smaller model, or a board with more memory"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
