"""Graphs under the rules of a target compute what those without rules compute."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import targets
from exporter.graph_kind import GraphKind
from exporter.graph_rules import PLAIN, GraphRules, rules_of
from exporter.lower import write_graphs
from exporter.runtime.loop import generate
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from tests.fixtures_lower import CANVAS, Lowered, golden, lower

CACHED = GraphKind(cached=True)
FIXED = GraphRules(capacity=CANVAS)


def under(lowered: Lowered, rules: GraphRules, folder: Path) -> Lowered:
    """The graphs again in another folder, over the same weights."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "weights.bin").hardlink_to(lowered.weights)
    spec, bundle = lowered.checkpoint.spec, replace(lowered.bundle, folder=folder)
    write_graphs(spec, lowered.stored, lowered.recipe, lowered.kinds, folder, rules=rules)
    return replace(lowered, bundle=bundle)


def test_rules_come_from_properties() -> None:
    assert rules_of(targets.load("cpu"), 512) == PLAIN
    assert rules_of(targets.load("rtx-40"), 512) == GraphRules(capacity=512)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_caches_of_a_fixed_length_change_no_answer(family: str, tmp_path: Path) -> None:
    """What lies behind the canvas is hidden: it adds exact zeros to sums of attention."""
    lowered = lower(golden(family), "fp32", tmp_path / "free")
    fixed = under(lowered, FIXED, tmp_path / "fixed")
    shapes = {v.name: v.shape for v in ir.load(fixed.graph(CACHED)).graph.inputs}
    for name in ("key_mask", "k_0", "v_0"):
        shape = shapes[name]
        assert shape is not None
        assert CANVAS in shape.dims
        assert not any(getattr(dim, "value", None) == "C" for dim in shape.dims)
    block = lowered.bundle.model.block_length or 8
    cache = "exact" if lowered.bundle.model.attention == "block-causal" else "dual"
    settings = Settings(gen_length=2 * block, block_length=block, cache=cache, early_stop=False)
    answers = []
    for one in (lowered, fixed):
        facts = one.bundle.model
        task = make_canvas([[5, 7, 9], [11, 12, 13, 14, 15]], settings.gen_length, facts)
        assert task[0].shape[1] < CANVAS
        answers.append(generate(one.session(CACHED), facts, settings, *task).canvas)
    assert np.array_equal(answers[0], answers[1])
