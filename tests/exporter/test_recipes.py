"""Names, passes and groups of recipes, and what is refused."""

import re
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UserError
from exporter.model import GROUPS as GROUPS_OF_LINEARS
from exporter.quant_options import QuantOptions
from exporter.recipe_names import BITS, METHODS, Limits, names
from exporter.recipes import GROUPS, Storage, make_recipe
from passes.activations.choose_attention import ChooseAttention
from passes.activations.grid import ActivationGrid
from passes.activations.ia_aq import IaAq
from passes.activations.key_mean import KeyMean
from passes.activations.static import StaticScales
from passes.calibrate.cgq import Cgq
from passes.calibrate.clean import Clean
from passes.calibrate.tmas import Tmas
from passes.calibrate.uniform import Uniform
from passes.numerics import WeightGrid
from passes.transforms.awq import Awq
from passes.transforms.omniquant import OmniQuant, OmniScale
from passes.transforms.quarot import RotateDown, RotateHeads, RotateQueriesKeys
from passes.transforms.smooth import SmoothQuant
from passes.weights.gptq import Gptq
from passes.weights.lorc import Lorc
from passes.weights.quantease import QuantEase
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
        assert (recipe.weights, recipe.activation, recipe.attention) == (None, None, None)
        assert (recipe.blocks, recipe.draw, recipe.weigh, recipe.rotation) == ((), None, None, None)
        assert (recipe.head_bits, recipe.embed_bits) == (16, 16)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_activations_take_the_type_that_the_target_is_fast_in(name: str, compute: Storage) -> None:
    recipe = make_recipe(name, SPEC, QuantOptions(), compute)
    assert (recipe.compute, recipe.storage) == (compute, "fp16")
    assert recipe.weights is not None and recipe.weights.bits == int(name[1])


def test_a_method_is_a_choice_of_passes() -> None:
    options = QuantOptions(
        group=32, act_order=True, damping=0.05, clip=True, samples=7, bins="trajectory",
        visible_score="zero", seed=3, rank=5,
    )  # fmt: skip
    gptq = Gptq(act_order=True, damping=0.05)
    tmas, cgq = Tmas(7, bins="trajectory", seed=3), Cgq(visible_score="zero")
    uniform = Uniform(7, 3)
    expected: dict[str, tuple[object, object, object]] = {
        "dllmquant": (tmas, cgq, (gptq,)),
        "gptq": (uniform, None, (gptq,)),
        "rtn": (None, None, (Rtn(),)),
        "awq": (uniform, None, (Awq(), Rtn())),
        "quantease": (uniform, None, (QuantEase(damping=0.05),)),
        "lorc": (uniform, None, (Lorc(gptq, 5),)),
        "omniquant": (uniform, None, (SmoothQuant(), OmniScale(), OmniQuant())),
        "quarot": (uniform, None, (RotateHeads(), RotateDown(), RotateQueriesKeys(), gptq)),
    }
    for method in METHODS.keys() - {"smoothquant", "duquant"}:
        recipe = make_recipe(f"w4a16-{method}", SPEC, options, "fp32")
        assert (recipe.draw, recipe.weigh, recipe.blocks) == expected[method]
        assert recipe.weights == WeightGrid(4, 32, clip=True)
        assert (recipe.rotation is not None) == (method == "quarot")


@pytest.mark.parametrize("method", METHODS)
def test_grids_are_found_behind_all_that_scales_and_turns(method: str) -> None:
    """Or they would be grids of other values than those that run."""
    blocks = make_recipe(f"w4a4-{method}+tensor", SPEC, QuantOptions(), "fp32").blocks
    order = [isinstance(step, (StaticScales, IaAq)) for step in blocks]
    first = order.index(True)
    assert order[first : first + 2] == [True, True]
    assert not any(order[first + 2 :])
    assert len(blocks) == first + 3  # behind the grids stands the solver alone


def test_components_are_switched_on_one_by_one() -> None:
    base = make_recipe("w4a4-quarot", SPEC, QuantOptions(), "fp32")
    assert (base.draw, base.weigh) == (Uniform(), None)
    assert IaAq("minmax") in base.blocks
    whole = make_recipe("w4a4-quarot+iaaq+cgq+tmas", SPEC, QuantOptions(), "fp32")
    assert (whole.draw, whole.weigh) == (Tmas(), Cgq())
    assert IaAq("range") in whole.blocks and IaAq("minmax") not in whole.blocks
    for left_out in ("tmas", "cgq", "iaaq"):
        name = "+".join(["w4a4-quarot", *({"tmas", "cgq", "iaaq"} - {left_out})])
        one = make_recipe(name, SPEC, QuantOptions(), "fp32")
        assert (one.draw == whole.draw) == (left_out != "tmas")
        assert (one.weigh == whole.weigh) == (left_out != "cgq")
        assert (one.blocks == whole.blocks) == (left_out != "iaaq")
    assert make_recipe("w4a4+clean", SPEC, QuantOptions(), "fp32").draw == Clean()
    assert make_recipe("w4a4+clean", SPEC, QuantOptions(), "fp32").name == "w4a4-dllmquant+clean"
    floats = make_recipe("w8a8", SPEC, QuantOptions(v_bits=16), "fp32")
    assert not any(isinstance(step, IaAq) for step in floats.blocks)
    spelled_out = f"w4a4-{BITS['w4a4'].default}"
    named = make_recipe("w4a4", SPEC, QuantOptions(), "fp32")
    spelled = make_recipe(spelled_out, SPEC, QuantOptions(), "fp32")
    assert repr(replace(spelled, name=named.name)) == repr(named)  # grids are compared by identity


@pytest.mark.parametrize(
    ("name", "weights", "activation", "operands"),
    [
        ("w8a8", WeightGrid(8, None, clip=True), ActivationGrid(8), (8, 8, 8, 8)),
        ("w4a8", WeightGrid(4, 32, 2, True), ActivationGrid(8), (8, 8, 8, 8)),
        ("w4a4", WeightGrid(4, 32), ActivationGrid(4, "group", 32), (8, 8, 4, 8)),
    ],
)
def test_bits_are_grids(
    name: str, weights: WeightGrid, activation: ActivationGrid, operands: tuple[int, ...]
) -> None:
    recipe = make_recipe(name, SPEC, QuantOptions(), "fp32")
    assert (recipe.weights, recipe.activation) == (weights, activation)
    grid = recipe.attention
    assert grid is not None and (grid.q_bits, grid.k_bits, grid.v_bits, grid.p_bits) == operands
    group = recipe.on_grids(0, GROUPS_OF_LINEARS[0])
    assert (group.grid, group.activation) == (weights, activation)


def test_integers_are_summed_over_groups_only_where_weights_have_two_levels() -> None:
    """A scale a token and whole-number group scales: what int8 products need."""
    recipe = make_recipe("w4a4", SPEC, QuantOptions(activation="token"), "fp32")
    assert recipe.weights == WeightGrid(4, 32, 2, True)
    static = make_recipe("w8a8", SPEC, QuantOptions(activation="tensor"), "fp32")
    assert StaticScales() in static.blocks
    mixed = replace(recipe, high=frozenset({(1, "mlp output")}))
    down = GROUPS_OF_LINEARS[3]
    assert mixed.on_grids(1, down).grid == WeightGrid(8, None, 1, True)
    assert mixed.on_grids(0, down).grid == recipe.weights


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("w4a4-gptq+tmas+clean", {}, "more than one place"),
        ("w4a4-gptq+token+group", {}, "more than one kind"),
        ("w4a4-gptq+token", {"activation": "group"}, "--activation group"),
        ("w4a16-gptq+token", {}, "stay float"),
        ("w4a4-gptq+magic", {}, "Unknown component `magic`"),
        ("w4a16-gptq+iaaq", {}, "stay float"),
        ("w4a16-rtn+tmas", {}, "is not calibrated"),
        ("w4a4-rtn+cgq", {}, "does not weigh tokens"),
        ("w4a16+smooth", {}, "activations stay float"),
        ("w4a4-duquant+smooth", {}, "smooths already"),
        ("w4a16-smoothquant", {}, "stay float"),
        ("w4a16-duquant", {}, "stay float"),
        ("w4a16", {"activation": "token"}, "stay float"),
        ("w4a4", {"p_bits": 5}, "--p-bits 5"),
        ("w4a4", {"head_bits": 5}, "--head-bits 5"),
        ("w4a4", {"embed_bits": 4}, "--embed-bits 4"),
    ],
)
def test_what_cannot_be_put_together_is_refused(
    name: str, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(UserError, match=error) as refused:
        make_recipe(name, SPEC, QuantOptions(**options), "fp32")
    assert refused.value.hint


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
    assert recipe.weights is not None
    assert recipe.weights.group == max(fitting, default=32)
    assert recipe.head_group == max((g for g in GROUPS if width % g == 0), default=32)


@given(width=widths, mlp=widths, group=st.sampled_from([*GROUPS, 1, 16, 48, 256]))
def test_a_group_that_does_not_fit_is_refused(width: int, mlp: int, group: int) -> None:
    spec = replace(SPEC, width=width, heads=width // 8, head_dim=8, mlp_width=mlp)
    options = QuantOptions(group=group)
    if group in GROUPS and width % group == mlp % group == 0:
        weights = make_recipe("w4a16-rtn", spec, options, "fp32").weights
        assert weights is not None and weights.group == group
        return
    with pytest.raises(UserError, match=f"Group {group} does not fit") as error:
        make_recipe("w4a16-rtn", spec, options, "fp32")
    assert str(width) in str(error.value)
    assert str(mlp) in str(error.value)
    fitting = [str(g) for g in GROUPS if width % g == mlp % g == 0]
    assert f"Groups that fit: {', '.join(fitting) or 'none'};" in error.value.hint


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("w5a16", BITS),
        ("w4a16-magic", METHODS),
        ("fp32-rtn", ["fp32"]),
        ("fp16-dllmquant", ["fp16"]),
        ("fp16+cgq", ["fp16"]),
        ("", BITS),
        ("W4A16", BITS),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_known_ones(name: str, known: list[str]) -> None:
    with pytest.raises(UserError, match=re.escape(f"Unknown recipe `{name}`")) as error:
        make_recipe(name, SPEC, QuantOptions(), "fp32")
    assert all(part in error.value.hint for part in known)


@pytest.mark.parametrize("target", target_names())
def test_the_default_recipe_of_a_target_exists(target: str) -> None:
    assert load(target).default_recipe in names()


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w4a4", "w4a8-rtn"])
@pytest.mark.parametrize("bits", [8, 4])
def test_caches_of_fewer_bits_keep_codes_of_attention(name: str, bits: int) -> None:
    """Whose keys and values have the bits of the cache, whatever the recipe's name says."""
    recipe = make_recipe(name, SPEC, QuantOptions(kv_bits=bits), "fp32")
    assert recipe.keeps_codes and recipe.attention is not None
    assert (recipe.attention.k_bits, recipe.attention.v_bits) == (bits, bits)
    kinds = [type(step) for step in recipe.blocks]
    assert kinds.count(KeyMean) == 1 and kinds.index(KeyMean) < kinds.index(IaAq)
    assert recipe.draw is not None  # the mean is one of calibration states


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("w4a8", QuantOptions()),
        ("w4a16", QuantOptions(kv_bits=8)),
        ("fp16", QuantOptions(kv_bits=4)),
        ("w4a8", QuantOptions(kv_bits=8, p_scale="static")),
        ("w4a8-quarot", QuantOptions(kv_bits=8, v_bits=16, p_bits=16)),
        ("w4a8", QuantOptions(kv_bits=8, q_bits=16)),
    ],
    ids=str,
)
def test_other_caches_hold_numbers_of_their_own(name: str, options: QuantOptions) -> None:
    recipe = make_recipe(name, SPEC, options, "fp32")
    assert not recipe.keeps_codes
    assert KeyMean not in [type(step) for step in recipe.blocks]


@pytest.mark.parametrize("operand", ["k", "v"])
def test_codes_of_two_widths_are_refused(operand: str) -> None:
    options: dict[str, Any] = {f"{operand}_bits": 8, "kv_bits": 4}
    with pytest.raises(UserError, match=f"--{operand}-bits 8 .* codes of 4 bits") as refused:
        make_recipe("w4a8", SPEC, QuantOptions(**options), "fp32")
    assert "--kv-bits 8" in refused.value.hint
    same = QuantOptions(**{**options, "kv_bits": 8})
    assert make_recipe("w4a8", SPEC, same, "fp32").keeps_codes


@pytest.mark.parametrize("name", ["w8a8", "w4a8", "w4a4-rtn"])
def test_attention_is_chosen_when_values_have_scales(name: str) -> None:
    recipe = make_recipe(name, SPEC, QuantOptions(attention_limit=0.02, kv_bits=8), "fp32")
    kinds = [type(step) for step in recipe.blocks]
    assert ChooseAttention(0.02) in recipe.blocks
    assert kinds.index(IaAq) < kinds.index(ChooseAttention) < len(kinds) - 1
    plain = make_recipe(name, SPEC, QuantOptions(), "fp32")
    assert ChooseAttention not in [type(step) for step in plain.blocks]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("w4a16", {"attention_limit": 0.02}, "floats alone"),
        ("w4a8", {"attention_limit": 0.02, "v_bits": 16, "p_bits": 16}, "floats alone"),
        ("w4a8", {"attention_limit": 0.0}, "0 is not possible"),
        ("w4a8", {"attention_limit": -1.0}, "-1 is not possible"),
        ("w4a8", {"attention_limit": float("nan")}, "nan is not possible"),
    ],
)
def test_there_has_to_be_a_choice(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"--attention-limit .*{said}") as refused:
        make_recipe(name, SPEC, QuantOptions(**options), "fp32")
    assert "--attention-limit" in refused.value.hint or "0.01" in refused.value.hint
