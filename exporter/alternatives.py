"""Options with which a model needs less memory than with those that it was asked for."""

from collections.abc import Iterator
from dataclasses import replace

from exporter.families import Spec
from exporter.operator_use import cache_bits, operator_use
from exporter.planner import Needs, estimate
from exporter.quant_options import QuantOptions
from exporter.recipes import Recipe, make_recipe
from targets import Target

SHORTEST = 256  # tokens: a canvas below that is no use for a model that does not fit
SMALLER = ("w8a16", "w4a16")  # recipes, the most exact first


def alternatives(
    spec: Spec, recipe: Recipe, canvas: int, target: Target
) -> Iterator[tuple[str, Needs]]:
    """Options, as they are typed, and what the model needs with them: what changes least first.

    Narrower keys and values, shorter canvases, recipes with narrower weights, then these together.
    """
    possible = cache_bits(target, operator_use(target, True, 0), recipe)
    kept = [bits for bits in possible if bits < recipe.kv_bits]
    canvases = [canvas >> halved for halved in range(1, 8) if canvas >> halved >= SHORTEST]
    for bits in kept:
        yield f"--kv-bits {bits}", estimate(spec, replace(recipe, kv_bits=bits), canvas)
    for length in canvases:
        yield f"--max-canvas {length}", estimate(spec, recipe, length)
    recipes = list(_recipes(spec, recipe, target))
    for name, smaller in recipes:
        yield f"--recipe {name}", estimate(spec, smaller, canvas)
    for name, smaller in recipes:
        for length in canvases:
            yield f"--recipe {name} --max-canvas {length}", estimate(spec, smaller, length)


def _recipes(spec: Spec, recipe: Recipe, target: Target) -> Iterator[tuple[str, Recipe]]:
    """Recipes with narrower weights, on the same keys and values."""
    bits = 16 if recipe.weights is None else recipe.weights.bits
    for name in SMALLER:
        options = QuantOptions(kv_bits=recipe.kv_bits)
        smaller = make_recipe(name, spec, options, target.compute)
        if smaller.weights is not None and smaller.weights.bits < bits:
            yield name, smaller
