"""Names, passes and groups of recipes, and what is refused."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UserError
from exporter.recipes import (
    BITS,
    GROUPS,
    METHODS,
    Limits,
    QuantOptions,
    Storage,
    make_recipe,
    names,
)
from passes.calibrate.cgq import Cgq
from passes.calibrate.tmas import Tmas
from passes.calibrate.uniform import Uniform
from passes.weights.gptq import Gptq
from passes.weights.rtn import Rtn
from targets import load
from targets import names as target_names
from tests.fixtures_lower import golden

SPEC = golden("llada").spec
QUANTIZED = [name for name in names() if name.startswith("w")]
widths = st.integers(1, 64).map(lambda n: 8 * n)


def test_every_name_makes_a_recipe() -> None:
    assert len(set(names())) == len(names())
    assert set(BITS) <= set(names())
    for name in names():
        bits, _, method = name.partition("-")
        recipe = make_recipe(name, SPEC, QuantOptions(), "fp32")
        assert recipe.name == (name if method or name in ("fp32", "fp16") else f"{bits}-dllmquant")


def test_float_recipes_quantize_nothing() -> None:
    for name in ("fp32", "fp16"):
        recipe = make_recipe(name, SPEC, QuantOptions(embed_bits=8), "fp16")
        assert (recipe.compute, recipe.storage) == (name, name)
        assert (recipe.bits, recipe.blocks, recipe.draw, recipe.weigh) == (None, (), None, None)
        assert (recipe.head_bits, recipe.embed_bits) == (16, 16)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_activations_take_the_type_that_the_target_is_fast_in(name: str, compute: Storage) -> None:
    recipe = make_recipe(name, SPEC, QuantOptions(), compute)
    assert (recipe.compute, recipe.storage) == (compute, "fp16")
    assert recipe.bits == int(name[1])


def test_a_method_is_a_choice_of_passes() -> None:
    options = QuantOptions(
        group=32, act_order=True, damping=0.05, clip=True, samples=7, bins="trajectory",
        visible_score="zero", seed=3,
    )  # fmt: skip
    made = {method: make_recipe(f"w4a16-{method}", SPEC, options, "fp32") for method in METHODS}
    gptq = Gptq(4, 32, act_order=True, damping=0.05, clip=True)
    tmas, cgq = Tmas(7, bins="trajectory", seed=3), Cgq(visible_score="zero")
    found = {m: (r.draw, r.weigh, r.blocks) for m, r in made.items()}
    assert found == {
        "dllmquant": (tmas, cgq, (gptq,)),
        "gptq": (Uniform(7, 3), None, (gptq,)),
        "rtn": (None, None, (Rtn(4, 32, clip=True),)),
    }


def test_settings_reach_the_recipe() -> None:
    recipe = make_recipe("w8a16", SPEC, QuantOptions(head_bits=16, embed_bits=8), "fp32")
    assert (recipe.head_bits, recipe.embed_bits) == (16, 8)


def test_the_gate_is_tighter_where_precision_is_higher() -> None:
    made = [
        make_recipe(n, SPEC, QuantOptions(), "fp32") for n in ("fp32", "fp16", "w8a16", "w4a16")
    ]
    for each in fields(Limits):
        allowed = [getattr(recipe.limits, each.name) for recipe in made]
        assert allowed == sorted(set(allowed)), each.name


@given(width=widths, heads=widths, mlp=widths)
def test_the_largest_group_that_divides_every_linear_is_taken(
    width: int, heads: int, mlp: int
) -> None:
    spec = replace(SPEC, width=width, heads=heads // 8, head_dim=8, mlp_width=mlp)
    recipe = make_recipe("w4a16-rtn", spec, QuantOptions(), "fp32")
    fitting = [g for g in GROUPS if width % g == heads % g == mlp % g == 0]
    assert recipe.group == max(fitting, default=32)
    assert recipe.head_group == max((g for g in GROUPS if width % g == 0), default=32)


@given(width=widths, mlp=widths, group=st.sampled_from([*GROUPS, 1, 16, 48, 256]))
def test_a_group_that_does_not_fit_is_refused(width: int, mlp: int, group: int) -> None:
    spec = replace(SPEC, width=width, heads=width // 8, head_dim=8, mlp_width=mlp)
    options = QuantOptions(group=group)
    if group in GROUPS and width % group == mlp % group == 0:
        assert make_recipe("w4a16-rtn", spec, options, "fp32").group == group
        return
    with pytest.raises(UserError, match=f"Group {group} does not fit") as error:
        make_recipe("w4a16-rtn", spec, options, "fp32")
    assert str(width) in str(error.value)
    assert str(mlp) in str(error.value)
    fitting = [str(g) for g in GROUPS if width % g == mlp % g == 0]
    assert f"Groups that fit: {', '.join(fitting) or 'none'};" in error.value.hint


@pytest.mark.parametrize(
    "name", ["w5a16", "w4a16-magic", "fp32-rtn", "fp16-dllmquant", "", "W4A16"]
)
def test_an_unknown_recipe_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"Unknown recipe `{name}`") as error:
        make_recipe(name, SPEC, QuantOptions(), "fp32")
    assert all(known in error.value.hint for known in names())


@pytest.mark.parametrize("target", [t for t in target_names() if load(t).supported])
def test_the_default_recipe_of_a_supported_target_exists(target: str) -> None:
    assert load(target).default_recipe in names()
