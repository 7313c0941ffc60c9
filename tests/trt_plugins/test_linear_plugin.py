"""The plugins of quantized linears, from a node's attributes to the numbers that they compute."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.op import OPS, LinearOp
from tests.launched_linear import assert_right as assert_right_in
from tests.launched_linear import in_kind, loaded, stored
from tests.linear_case import LinearCase, random_case, random_rows
from tests.plugin_harness import Given, Harness, PluginCase, needs_plugins

pytestmark = needs_plugins

ROWS: list[tuple[int, ...]] = [(1,), (3, 5), (2, 1, 4), (0,), (37,)]

Floats = npt.NDArray[np.floating[Any]]


def plugin_case(case: LinearCase, x: Floats) -> PluginCase:
    """The node of `case`: rows of x are not known before the engine runs, all else is."""
    given = [Given(x, variable=x.ndim - 1)]
    for weight in case.weights:
        if case.op.weight_bits == 4:
            given.append(Given(pack_int4(weight.codes), kind="int4", shape=weight.codes.shape))
        else:
            given.append(Given(weight.codes))
        given.append(Given(weight.scales.astype(np.float16 if case.half else np.float32)))
        given += [] if weight.steps is None else [Given(weight.steps)]
    given += [] if case.op.gated else [Given(case.bias.astype(x.dtype))]
    attributes: dict[str, int | float] = {
        "group": case.group, "activation_group": case.activation_group, "step": case.step,
    }  # fmt: skip
    shape = (*x.shape[:-1], case.shape[1])
    return PluginCase(case.op.name, given, shape, x.dtype, attributes)


def drawn(seed: int, op: LinearOp) -> tuple[LinearCase, Floats]:
    """Ragged groups, odd widths, groups that cross those of activations, both float types."""
    rng = np.random.default_rng(seed)
    activation_group = int(rng.choice([8, 24, 64]))
    depth, width = activation_group * int(rng.integers(1, 4)), int(rng.integers(1, 70))
    group = int(rng.choice([16, 32, 64, depth]))
    case = random_case(rng, op, (depth, width), group, activation_group, bool(rng.integers(2)))
    case = replace(case, kept=op.activation_bits == 16)
    x = random_rows(rng, case, ROWS[seed % len(ROWS)])
    if seed // 16 % 2:
        return case, x
    bias = case.bias.astype(np.float16).astype(np.float32)
    return replace(case, bias=bias), x.astype(np.float16)


def assert_right(case: LinearCase, x: Floats, y: Floats | None) -> None:
    """y lies within the bound of fp32 sums, rounded to its type: rounding once keeps order."""
    wide = x.astype(np.float32)
    wanted, bound = case.expected(wide), case.bound(wide, body=False)
    with np.errstate(over="ignore"):  # large outputs are infinite in fp16
        low, high = (wanted - bound).astype(x.dtype), (wanted + bound).astype(x.dtype)
    assert y is not None
    assert ((low <= y) & (y <= high)).all(), case.op.name


def test_what_an_engine_keeps_is_enough(harness: Harness, tmp_path: Path) -> None:
    """All formats, several shapes each, in both float types: y is the reference's."""
    pairs = [drawn(seed, op) for seed, op in enumerate([*OPS] * 6)]
    cases = [plugin_case(*pair) for pair in pairs]
    for (case, x), outcome in zip(pairs, harness.run(cases, tmp_path), strict=True):
        assert not outcome.log
        assert_right(case, x, outcome.y)
    assert {case.half for case, _ in pairs} == {True, False}
    assert {x.dtype.itemsize for _, x in pairs} == {2, 4}


def in_bf16(case: LinearCase, x: Floats) -> PluginCase:
    """The same node with x, bias and y in bf16."""
    made = plugin_case(case, x)
    inputs = [replace(made.inputs[0], content=stored(x, "bf16")), *made.inputs[1:]]
    if not case.op.gated:
        inputs[-1] = Given(stored(case.bias, "bf16"))
    return replace(made, inputs=inputs, dtype=np.uint16)


def test_bf16_is_taken(harness: Harness, tmp_path: Path) -> None:
    """By all formats; weights' scales are fp16 or fp32."""
    pairs = [in_kind(*drawn(seed, op), "bf16") for seed, op in enumerate(OPS)]
    outcomes = harness.run([in_bf16(*pair) for pair in pairs], tmp_path)
    for (case, x), outcome in zip(pairs, outcomes, strict=True):
        assert outcome.y is not None, outcome.log
        assert_right_in(case, x, loaded(outcome.y, "bf16"), "bf16")


def plain() -> PluginCase:
    """DqxLinearW4A8Channel of 3 rows, 48 inputs and 6 outputs in groups of 16."""
    rng = np.random.default_rng(0)
    case = random_case(rng, LinearOp(4, 8, channel=True), (48, 6), 16, 48, exact=False)
    return plugin_case(case, random_rows(rng, case, (3,)))


def changed(case: PluginCase, place: int, tensor: Given) -> PluginCase:
    inputs = [*case.inputs]
    inputs[place] = tensor
    return replace(case, inputs=inputs)


def attribute(case: PluginCase, **values: int | float) -> PluginCase:
    return replace(case, attributes={**case.attributes, **values})


def without(case: PluginCase, name: str) -> PluginCase:
    return replace(case, attributes={k: v for k, v in case.attributes.items() if k != name})


def faults() -> Sequence[tuple[PluginCase, str, str]]:
    """A case, what refuses it, and what is said."""
    case = plain()
    x, codes, scales, steps, bias = case.inputs
    short = Given(np.zeros((2, 6), np.int8))
    create, types, shapes = "createPlugin", "getOutputDataTypes", "getOutputShapes"
    half = np.zeros(6, np.uint16)
    return [
        (without(case, "group"), create, "the attribute group is missing"),
        (without(case, "step"), create, "the attribute step is missing"),
        (attribute(case, group=0), create, "group = 0 has to be positive"),
        (attribute(case, group=1.0), create, "the attribute group has to be an integer"),
        (attribute(case, step=1), create, "the attribute step has to be a float"),
        (attribute(case, step=float("nan")), create, "step = nan has to be positive"),
        (replace(case, long=True), create, "group has to be an integer of 32 bits"),
        (replace(case, inputs=case.inputs[:-1]), types, "5 inputs, not 4"),
        (changed(case, 0, Given(np.zeros((3, 48), np.int8))), types, "input 0 is not to be int8"),
        (changed(case, 1, Given(np.zeros((48, 6), np.int8))), types, "input 1 is not to be int8"),
        (changed(case, 4, Given(np.zeros(6, np.float16))), types, "input 4 is not to be fp16"),
        (changed(case, 2, Given(half)), types, "input 2 is not to be bf16"),
        (changed(case, 4, Given(half)), types, "input 4 is not to be bf16"),
        (changed(case, 0, Given(x.content[:, :40])), shapes, "x (3, 40) does not fit codes"),
        (changed(case, 0, Given(np.array(1, np.float32))), shapes, "x () does not fit codes"),
        (changed(case, 2, Given(scales.content[:5])), shapes,
         "scales (5), input 2, have to be (6) with groups of 16"),
        (changed(case, 3, short), shapes, "steps (2, 6), input 3, have to be (3, 6)"),
        (changed(case, 4, Given(bias.content[:1])), shapes, "bias (1), input 4, have to be (6)"),
        (changed(case, 1, replace(codes, shape=(48, 2, 3))), shapes, "have to have two axes"),
        (attribute(case, activation_group=16), shapes, "activation_group = 16 does not fit 48"),
        (changed(case, 3, replace(steps, variable=1, content=short.content)), "configurePlugin",
         "steps (2, 6), input 3, have to be (3, 6)"),
    ]  # fmt: skip


def test_what_does_not_fit_is_refused_with_a_reason(harness: Harness, tmp_path: Path) -> None:
    cases, stages, texts = zip(*faults(), strict=True)
    outcomes = harness.run(cases, tmp_path)
    for outcome, stage, text in zip(outcomes, stages, texts, strict=True):
        assert outcome.refused == stage, text
        (said,) = outcome.log
        assert said.startswith("DqxLinearW4A8Channel: ") and text in said


def test_inputs_of_16_bits_need_no_group(harness: Harness, tmp_path: Path) -> None:
    """They are not rounded: a group that divides nothing is no error, and nothing depends on it."""
    case, x = drawn(18, LinearOp(4, 16))
    other = attribute(plugin_case(case, x), activation_group=7, step=0.5)
    one, two = harness.run([plugin_case(case, x), other], tmp_path)
    assert one.y is not None
    np.testing.assert_array_equal(one.y, two.y)
