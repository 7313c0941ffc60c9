"""The plugin of attention over a cache, from a node's attributes to y and what caches hold."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ort_ops.cached_attention.op import INPUTS, ROTARY, TURNS, CachedForm, operator_name
from tests.cached_attention_case import CachedCase, CachedShape, random_case
from tests.plugin_harness import Given, Harness, PluginCase, needs_plugins

pytestmark = needs_plugins

FORMS = [
    CachedForm(4, 2), CachedForm(4, 4, k_bits=4, v_bits=4), CachedForm(6, 2, 7, 15),
    CachedForm(4, 1, p_top=0, v_bits=16), CachedForm(2, 1, k_bits=4, v_bits=8),
]  # fmt: skip
SHAPES = [
    CachedShape(2, 5, 40, 16), CachedShape(1, 1, 1, 8), CachedShape(2, 33, 130, 64, turned=64),
    CachedShape(1, 7, 65, 20, turned=8),
]  # fmt: skip
KEPT = ("k_cache", "k_scales", "v_cache")
VARIABLE = {
    "q": 2, "k": 2, "v": 2, "k_cache": 1, "k_scales": 1, "v_cache": 1, "start": 1, "key_block": 1,
    "reach": 2, "cos": 2, "sin": 2,
}  # fmt: skip


def plugin_case(case: CachedCase, in_place: bool) -> PluginCase:
    """The node of `case`: rows and fed positions are not known before the engine runs."""
    names = [name for name in (*INPUTS, *TURNS) if name in case.x]
    given = [Given(case.x[name], VARIABLE.get(name, 0)) for name in names]
    q, others = case.x["q"], [(case.x[name].shape, case.x[name].dtype) for name in KEPT]
    places = (-1, *(INPUTS.index(name) for name in KEPT)) if in_place else ()
    name = operator_name(case.form, "cos" in case.x)
    return PluginCase(name, given, q.shape, q.dtype, vars(case.form), places, others)


def test_what_an_engine_keeps_is_enough(harness: Harness, tmp_path: Path) -> None:
    """All formats in both float types, in place and not: y and caches are the reference's."""
    cases = [
        random_case(np.random.default_rng(seed), shape, form, half)
        for seed, form in enumerate(FORMS)
        for shape in SHAPES
        for half in (False, True)
    ]
    nodes = [plugin_case(case, bool(number % 2)) for number, case in enumerate(cases)]
    nodes += [plugin_case(case, not number % 2) for number, case in enumerate(cases)]
    for case, outcome in zip([*cases, *cases], harness.run(nodes, tmp_path), strict=True):
        assert not outcome.log
        low, high, _ = case.bounds()
        assert outcome.y is not None
        assert ((low <= outcome.y) & (outcome.y <= high)).all()
        for found, wanted in zip(outcome.others, vars(case.caches()).values(), strict=True):
            np.testing.assert_array_equal(found, wanted)


def plain() -> PluginCase:
    """One row, 7 fed positions in a cache of 65; 4 query heads, 2 key heads of 20 channels."""
    case = random_case(np.random.default_rng(0), SHAPES[3], FORMS[0], half=False)
    return plugin_case(case, in_place=False)


def changed(
    case: PluginCase, name: str, shape: tuple[int, ...], kind: type | None = None, variable: int = 0
) -> PluginCase:
    """With another tensor of zeros as an input."""
    inputs, place = [*case.inputs], (*INPUTS, *TURNS).index(name)
    inputs[place] = Given(np.zeros(shape, kind or inputs[place].content.dtype), variable)
    return replace(case, inputs=inputs)


def attribute(case: PluginCase, **values: int | float) -> PluginCase:
    return replace(case, attributes={**case.attributes, **values})


def faults() -> Sequence[tuple[PluginCase, str, str]]:
    """A case, what refuses it, and what is said."""
    case = plain()
    missing = {name: value for name, value in case.attributes.items() if name != "v_bits"}
    create, types, shapes = "createPlugin", "getOutputDataTypes", "getOutputShapes"
    four = attribute(case, k_bits=4, v_bits=4)
    return [
        (replace(case, attributes=missing), create, "the attribute v_bits is missing"),
        (attribute(case, heads=3), create, "heads = 3 have to be a multiple of kv_heads = 2"),
        (attribute(case, q_top=128), create, "q_top = 128 has to be between 1 and 127"),
        (attribute(case, k_bits=16), create, "k_bits = 16 has to be 8 or 4"),
        (attribute(case, v_bits=5), create, "v_bits = 5 has to be 8 or 4"),
        (attribute(case, v_bits=16, p_top=0), create, "v_bits = 16 has to be 8 or 4"),
        (replace(case, plugin=f"{ROTARY}FloatValues"), create, "v_bits = 8 has to be 16"),
        (attribute(case, p_top=0), create, "p_top = 0 has to be between 1 and 255"),
        (replace(case, inputs=case.inputs[:-1]), types, "14 inputs, not 13"),
        (changed(case, "v", (1, 7, 40), np.float16), types, "input 2 is not to be fp16"),
        (changed(case, "k_cache", (1, 2, 65, 20), np.float32), types, "input 3 is not to be fp32"),
        (changed(case, "v_cache", (1, 2, 65, 20), np.float32), types, "input 5 is not to be fp32"),
        (changed(case, "start", (1,), np.int32), types, "input 6 is not to be int32"),
        (changed(case, "reach", (1, 7), np.int64), types, "input 8 is not to be int64"),
        (changed(case, "q", (1, 7, 81)), shapes, "q (1, 7, 81) has to have 4 heads"),
        (changed(case, "q", (1, 7, 4 * 257)), shapes, "4 heads of 1 to 256 channels"),
        (changed(case, "q", (1, 66, 80)), shapes, "k_cache (1, 2, 65, 20) has no room"),
        (changed(case, "k", (1, 7, 80)), shapes, "k (1, 7, 80) has to be (1, 7, 40)"),
        (changed(case, "k_cache", (1, 4, 65, 20)), shapes, "k_cache (1, 4, 65, 20) has to be"),
        (changed(case, "k_scales", (1, 2, 65, 2)), shapes, "k_scales (1, 2, 65, 2) has to be"),
        (four, shapes, "k_cache (1, 2, 65, 20) has to be (1, 2, 65, 10)"),
        (changed(case, "key_block", (1, 64)), shapes, "key_block (1, 64) has to be (1, 65)"),
        (changed(case, "reach", (1, 6)), shapes, "reach (1, 6) has to be (1, 7)"),
        (changed(case, "k_mean", (20,)), shapes, "k_mean (20) has to have a number for each"),
        (changed(case, "cos", (1, 7, 11)), shapes, "cos (1, 7, 11) has to turn pairs of 20"),
        (changed(case, "sin", (1, 7, 3)), shapes, "sin (1, 7, 3) has to be (1, 7, 4)"),
        (changed(case, "reach", (1, 6), variable=2), "configurePlugin", "reach (1, 6) has to be"),
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_with_a_reason(harness: Harness, tmp_path: Path) -> None:
    cases, stages, texts = zip(*faults(), strict=True)
    known = [*cases[:-1]]  # at once: what is not known yet cannot be wrong yet
    for number, case in enumerate(known):
        inputs = [replace(given, variable=0) for given in case.inputs]
        known[number] = replace(case, inputs=inputs)
    outcomes = harness.run([*known, cases[-1]], tmp_path)
    for outcome, stage, text in zip(outcomes, stages, texts, strict=True):
        assert outcome.refused == stage, (text, outcome.log)
        (said,) = outcome.log
        assert said.startswith(ROTARY) and text in said, (text, said)
