"""The plugin that writes into a cache, with memory of its own and in place."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ort_ops.kv_update.op import NAME, reference
from tests.plugin_harness import Given, Harness, PluginCase, needs_plugins

pytestmark = needs_plugins


def drawn(seed: int) -> tuple[PluginCase, npt.NDArray[Any]]:
    """A case with variable rows and positions, and its y."""
    rng = np.random.default_rng(seed)
    dtype = [np.float16, np.float32, np.int8][seed % 3]
    batch, heads, capacity, width = (int(n) for n in rng.integers(1, [4, 4, 20, 40]))
    fed = int(rng.integers(0, capacity + 1))
    cache = rng.integers(-99, 100, (batch, heads, capacity, width)).astype(dtype)
    fresh = rng.integers(-99, 100, (batch, heads, fed, width)).astype(dtype)
    start = rng.integers(0, capacity - fed + 1, batch)
    inputs = [Given(cache, variable=1), Given(fresh, variable=3), Given(start, variable=1)]
    case = PluginCase(NAME, inputs, cache.shape, dtype, in_place=[0] * (seed // 3 % 2))
    return case, reference(cache, fresh, start)


def test_it_writes_what_is_fed_and_keeps_the_rest(harness: Harness, tmp_path: Path) -> None:
    cases, wanted = zip(*map(drawn, range(60)), strict=True)
    for outcome, y in zip(harness.run(cases, tmp_path), wanted, strict=True):
        assert not outcome.log
        np.testing.assert_array_equal(outcome.y, y)


def test_what_does_not_fit_is_refused_with_a_reason(harness: Harness, tmp_path: Path) -> None:
    case = replace(drawn(0)[0], in_place=())
    cache = Given(np.zeros((2, 3, 8, 4), np.float16))
    fresh, start = Given(np.zeros((2, 3, 1, 4), np.float16)), Given(np.zeros(2, np.int64))
    wide, one = Given(np.zeros((2, 3, 1, 5), np.float16)), Given(np.zeros(1, np.int64))
    types, shapes = "getOutputDataTypes", "getOutputShapes"
    faults = [
        ([cache, wide, start], shapes, "fresh (2, 3, 1, 5)"),
        ([cache, fresh, one], shapes, "start (1) do not fit"),
        ([cache, fresh, Given(np.zeros(2, np.int32))], types, "input 2 is not to be int32"),
        ([cache, Given(np.zeros((2, 3, 1, 4), np.float32)), start], types, "input 1"),
        ([Given(np.zeros((2, 3, 8, 4), np.int64)), fresh, start], types, "input 0"),
        ([cache, fresh], types, "3 inputs, not 2"),
        ([cache, replace(wide, variable=4), start], "configurePlugin", "fresh (2, 3, 1, 5)"),
    ]
    cases = [replace(case, inputs=inputs, shape=(2, 3, 8, 4)) for inputs, _, _ in faults]
    outcomes = harness.run(cases, tmp_path)
    for outcome, (_, stage, text) in zip(outcomes, faults, strict=True):
        assert outcome.refused == stage
        (said,) = outcome.log
        assert said.startswith(f"{NAME}: ") and text in said
