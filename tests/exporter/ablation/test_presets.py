"""Lists of recipes: each can be made, and each stands beside what it is compared with."""

from dataclasses import replace
from typing import get_args

import pytest

from exporter.ablation.inputs import bases_of
from exporter.ablation.presets import PARTS, PRESETS, QUESTIONS, one_by_one
from exporter.checkpoint import open_checkpoint
from exporter.quant_options import QuantOptions
from exporter.recipe_names import COMPONENTS, parse
from exporter.recipes import make_recipe
from exporter.tasks import Reference, reference_folder
from tests.fixtures_lower import GOLDEN_FAMILIES, golden

PRESET = pytest.mark.parametrize("preset", PRESETS)
SPECS = [golden(family).spec for family in GOLDEN_FAMILIES]
SPECS += [open_checkpoint(reference_folder(name)).spec for name in get_args(Reference)]


@PRESET
def test_every_recipe_can_be_made_and_is_another(preset: str) -> None:
    for spec in SPECS:
        made = [make_recipe(name, spec, QuantOptions(), "fp32") for name in PRESETS[preset]]
        assert len({repr(replace(recipe, name="")) for recipe in made}) == len(made)


@PRESET
def test_every_recipe_stands_beside_its_base(preset: str) -> None:
    recipes = PRESETS[preset]
    bases = bases_of(recipes, None)
    assert bases.keys() == set(recipes)
    for name, base in bases.items():
        assert base in recipes, f"`{name}` is compared with `{base}`"
        bits, method, _ = parse(base)
        assert parse(name)[:2] == (bits, method)


@PRESET
def test_every_preset_says_what_it_asks(preset: str) -> None:
    assert QUESTIONS[preset]
    assert QUESTIONS.keys() == PRESETS.keys()


def test_methods_differ_in_nothing_but_the_method() -> None:
    """Grids of weights may follow the method's own clipping; those of activations are one."""
    for spec in SPECS:
        made = [make_recipe(name, spec, QuantOptions(), "fp32") for name in PRESETS["methods"]]
        assert len({repr((recipe.activation, recipe.attention)) for recipe in made}) == 1
        grids = [recipe.weights for recipe in made if recipe.weights is not None]
        assert len(grids) == len(made)
        assert len({replace(grid, clip=False) for grid in grids}) == 1


def test_components_alone_together_and_left_out() -> None:
    found = one_by_one("w4a4-gptq")
    parts = [frozenset(parse(name)[2]) for name in found]
    alone = [frozenset({part}) for part in PARTS]
    but_one = [frozenset(PARTS) - one for one in alone]
    assert parts == [frozenset(), *alone, frozenset(PARTS), *but_one]
    assert set(PARTS) <= COMPONENTS.keys()
    assert {parse(name)[:2] for name in found} == {("w4a4", "gptq")}
