"""The plugin of attention, from a node's attributes to the numbers that it computes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ort_ops.attention.op import NAME, AttentionTops
from tests.attention_case import AttentionCase, AttentionShape, random_case
from tests.plugin_harness import Given, Harness, PluginCase, needs_plugins

pytestmark = needs_plugins

SHAPES = [
    AttentionShape(rows=1, queries=1, keys=1, heads=1, kv_heads=1, width=4),
    AttentionShape(rows=2, queries=33, keys=65, heads=4, kv_heads=2, width=16),
    AttentionShape(rows=1, queries=7, keys=70, heads=3, kv_heads=1, width=96),
    AttentionShape(rows=3, queries=5, keys=19, heads=2, kv_heads=2, width=200),
]
TOPS = [AttentionTops(), AttentionTops(7, 127, 15, 15)]


def plugin_case(case: AttentionCase) -> PluginCase:
    """The node of `case`: sequences, queries and keys are not known before the engine runs."""
    variable = (2, 3, 3, 4, 2, 0, 0)
    given = [Given(x, variable=count) for x, count in zip(case.inputs, variable, strict=True)]
    tops = case.tops
    attributes: dict[str, int | float] = {
        "heads": case.heads, "kv_heads": case.k.shape[1],
        "q_top": tops.q, "k_top": tops.k, "v_top": tops.v, "p_top": tops.p,
    }  # fmt: skip
    return PluginCase(NAME, given, case.q.shape, case.q.dtype, attributes)


def test_what_an_engine_keeps_is_enough(harness: Harness, tmp_path: Path) -> None:
    """Several shapes in both float types: y is the reference's."""
    cases = [
        random_case(np.random.default_rng(seed), shape, tops, half)
        for seed in range(2)
        for shape in SHAPES
        for tops in TOPS
        for half in (False, True)
    ]
    nodes = [plugin_case(case) for case in cases]
    for case, outcome in zip(cases, harness.run(nodes, tmp_path), strict=True):
        assert not outcome.log
        low, high, _ = case.bounds()
        assert outcome.y is not None
        assert ((low <= outcome.y) & (outcome.y <= high)).all()


def plain() -> PluginCase:
    """Two sequences of 33 queries and 65 keys; 4 query heads, 2 key heads of 16 channels; fp32."""
    return plugin_case(random_case(np.random.default_rng(0), SHAPES[1], TOPS[0], half=False))


def changed(
    case: PluginCase,
    place: int,
    shape: tuple[int, ...],
    variable: int = 0,
    kind: type | None = None,
) -> PluginCase:
    """With another tensor of zeros as input `place`."""
    inputs = [*case.inputs]
    inputs[place] = Given(np.zeros(shape, kind or inputs[place].content.dtype), variable)
    return replace(case, inputs=inputs)


def attribute(case: PluginCase, **values: int | float) -> PluginCase:
    return replace(case, attributes={**case.attributes, **values})


def faults() -> Sequence[tuple[PluginCase, str, str]]:
    """A case, what refuses it, and what is said."""
    case = plain()
    missing = {name: value for name, value in case.attributes.items() if name != "p_top"}
    wide = changed(case, 1, (2, 2, 65, 257))
    create, types, shapes = "createPlugin", "getOutputDataTypes", "getOutputShapes"
    return [
        (replace(case, attributes=missing), create, "the attribute p_top is missing"),
        (attribute(case, heads=3), create, "heads = 3 have to be a multiple of kv_heads = 2"),
        (attribute(case, kv_heads=0), create, "a multiple of kv_heads = 0"),
        (attribute(case, q_top=0), create, "q_top = 0 has to be between 1 and 127"),
        (attribute(case, k_top=255), create, "k_top = 255 has to be between 1 and 127"),
        (attribute(case, v_top=256), create, "v_top = 256 has to be between 1 and 255"),
        (attribute(case, p_top=-1), create, "p_top = -1 has to be between 1 and 255"),
        (replace(case, inputs=case.inputs[:-1]), types, "7 inputs, not 6"),
        (changed(case, 0, (2, 33, 64), kind=np.int8), types, "input 0 is not to be int8"),
        (changed(case, 2, (2, 2, 65, 16), kind=np.float16), types, "input 2 is not to be fp16"),
        (changed(case, 3, (2, 1, 33, 65), kind=np.float32), types, "input 3 is not to be fp32"),
        (changed(case, 4, (2, 65), kind=np.int32), types, "input 4 is not to be int32"),
        (changed(case, 0, (2, 33, 4, 16)), shapes, "q (2, 33, 4, 16) has to have three axes"),
        (changed(case, 0, (2, 33, 48)), shapes, "q (2, 33, 48) has to be (2, 33, 64)"),
        (changed(case, 1, (2, 4, 65, 16)), shapes, "k (2, 4, 65, 16) has to be (2, 2, 65, 16)"),
        (changed(case, 1, (2, 2, 0, 16)), shapes, "k (2, 2, 0, 16) has no keys"),
        (wide, shapes, "heads have to have 1 to 256 channels, not 257"),
        (changed(case, 2, (2, 2, 64, 16)), shapes, "v (2, 2, 64, 16) has to be (2, 2, 65, 16)"),
        (changed(case, 3, (2, 2, 33, 65)), shapes, "visible (2, 2, 33, 65) has to be"),
        (changed(case, 4, (1, 65)), shapes, "common (1, 65) has to be (2, 65)"),
        (changed(case, 5, (2, 1, 1, 15)), shapes, "v_scale (2, 1, 1, 15) has to have a number"),
        (changed(case, 6, (1, 16)), shapes, "each channel of 2 heads of 16"),
        (changed(case, 3, (2, 1, 33, 64), 4), "configurePlugin",
         "visible (2, 1, 33, 64) has to be (2, 1, 33, 65)"),
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_with_a_reason(harness: Harness, tmp_path: Path) -> None:
    cases, stages, texts = zip(*faults(), strict=True)
    known = [*cases[:-1]]  # at once: what is not known yet cannot be wrong yet
    for number, case in enumerate(known):
        inputs = [replace(given, variable=0) for given in case.inputs]
        known[number] = replace(case, inputs=inputs)
    outcomes = harness.run([*known, cases[-1]], tmp_path)
    for outcome, stage, text in zip(outcomes, stages, texts, strict=True):
        assert outcome.refused == stage, text
        (said,) = outcome.log
        assert said.startswith(f"{NAME}: ") and text in said
