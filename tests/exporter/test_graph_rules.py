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
from exporter.operator_use import OperatorUse, needs_plugins, operator_use
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.runtime.loop import generate
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from ort_ops.function_body import DOMAIN
from tests.fixtures_lower import CANVAS, Lowered, golden, lower

CACHED = GraphKind(cached=True)
FIXED = GraphRules(capacity=CANVAS)


def under(
    lowered: Lowered, rules: GraphRules, folder: Path, use: OperatorUse | None = None
) -> Lowered:
    """The graphs again in another folder, over the same weights."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "weights.bin").hardlink_to(lowered.weights)
    spec, bundle = lowered.checkpoint.spec, replace(lowered.bundle, folder=folder)
    write_graphs(spec, lowered.stored, lowered.recipe, lowered.kinds, folder, use, rules)
    return replace(lowered, bundle=bundle)


def test_rules_come_from_properties() -> None:
    assert rules_of(targets.load("cpu"), 512) == PLAIN
    rtx, old = (rules_of(targets.load(name), 512) for name in ("rtx-40", "jetson-orin-jp62"))
    assert (rtx.opset, rtx.capacity) == (24, 512)
    assert old == replace(rtx, opset=21)


PLUGINS = operator_use(targets.load("jetson-orin-jp62"), True, 0)
NEWER_THAN_21 = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


@pytest.mark.parametrize("use", [None, PLUGINS], ids=["standard", "ours"])
@pytest.mark.parametrize("target", ["jetson-orin", "jetson-orin-jp62"])
@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "llada2", "lladamoe"])
def test_what_tensorrt_reads_gives_the_same_answers(
    family: str, target: str, use: OperatorUse | None, tmp_path: Path
) -> None:
    rules = rules_of(targets.load(target), CANVAS)
    plain = lower(golden(family), "fp32", tmp_path / "plain")
    ruled = under(plain, rules, tmp_path / "ruled", use)
    facts = plain.bundle.model
    block = facts.block_length or 8
    for kind in (GraphKind(), CACHED):
        cache = "none" if not kind.cached else "exact" if facts.block_length else "dual"
        settings = Settings(gen_length=32, block_length=block, cache=cache, early_stop=False)
        task = make_canvas([[5, 7, 9], [11, 12, 13]], settings.gen_length, facts)
        answers = [generate(one.session(kind), facts, settings, *task) for one in (plain, ruled)]
        assert np.array_equal(answers[0].canvas, answers[1].canvas)
        model = ir.load(ruled.graph(kind))
        assert model.opset_imports[""] == rules.opset
        if rules.opset < 23:
            nodes = [*model.graph, *(n for f in model.functions.values() for n in f)]
            assert not NEWER_THAN_21 & {node.op_type for node in nodes if not node.domain}


@pytest.mark.parametrize("target", ["jetson-orin", "jetson-orin-jp62"])
def test_whole_numbers_in_a_cache_are_the_same(target: str, tmp_path: Path) -> None:
    """Which QuantizeLinear rounds and an operator of ours stores, and which Cast does."""
    rules = rules_of(targets.load(target), CANVAS)
    plain = lower(golden("llada"), "fp32", tmp_path / "plain", QuantOptions(kv_bits=8))
    ruled = under(plain, rules, tmp_path / "ruled", PLUGINS)
    settings = Settings(gen_length=32, block_length=8, cache="dual", early_stop=False)
    facts = plain.bundle.model
    task = make_canvas([[5, 7, 9], [11, 12, 13]], settings.gen_length, facts)
    answers = [generate(s.session(CACHED), facts, settings, *task) for s in (plain, ruled)]
    assert np.array_equal(answers[0].canvas, answers[1].canvas)
    used = {n.op_type for n in ir.load(ruled.graph(CACHED)).graph if n.domain}
    assert used == {"DqxKvUpdate"}


def test_plugins_take_integers_and_leave_floats_to_tensorrt(tmp_path: Path) -> None:
    """In fp16, with the attributes by which the parser finds them."""
    use = operator_use(targets.load("rtx-40"), True, 0)
    rules = rules_of(targets.load("rtx-40"), CANVAS)
    for recipe, linears in (("w4a8-rtn", 28), ("w8a8-rtn", 0), ("w4a16-rtn", 0)):
        folder = tmp_path / recipe
        lowered = lower(golden("llada"), recipe, folder, compute="fp16", rules=rules, operators=use)
        model = ir.load(lowered.graph(GraphKind()))
        found = [node for node in model.graph if node.domain == DOMAIN]
        assert sum("Linear" in n.op_type or "Gated" in n.op_type for n in found) <= linears
        assert bool(found) == bool(linears)
        for node in found:
            assert node.attributes["plugin_namespace"].value == DOMAIN
            assert node.attributes["plugin_version"].value == "1"


def own_nodes(
    recipe: str, target: targets.Target, accuracy_level: int, folder: Path
) -> list[ir.Node]:
    """Nodes of ours in a graph of fp16, without those of attention."""
    use = operator_use(target, True, accuracy_level)
    lowered = lower(
        golden("llada"), recipe, folder, compute="fp16", rules=rules_of(target, CANVAS),
        operators=use,
    )  # fmt: skip
    nodes = ir.load(lowered.graph(GraphKind())).graph
    return [n for n in nodes if n.op_type.startswith(("DqxLinear", "DqxGated"))]


def test_level_4_rounds_inputs_of_4_bit_weights_with_plugins_too(tmp_path: Path) -> None:
    """To 8 bits in the weights' groups. 8-bit weights stay with TensorRT."""
    target = targets.load("rtx-40")
    found = own_nodes("w4a16-rtn", target, 4, tmp_path / "4")
    assert {n.op_type for n in found} == {"DqxLinearW4A8", "DqxGatedW4A8"}
    for node in found:
        step, along = node.attributes["step"].value, node.attributes["activation_group"].value
        assert step == pytest.approx(1 / 127)
        assert along == node.attributes["group"].value
    assert not own_nodes("w8a16-rtn", target, 4, tmp_path / "8")


def test_a_target_may_take_float_inputs_of_4_bit_weights(tmp_path: Path) -> None:
    rtx = targets.load("rtx-40")
    target = rtx.model_copy(update={"operators": (*rtx.operators, "linear-w4a16")})
    found = own_nodes("w4a16-rtn", target, 0, tmp_path / "0")
    assert {n.op_type for n in found} == {"DqxLinearW4A16", "DqxGatedW4A16"}
    rounded = own_nodes("w4a16-rtn", target, 4, tmp_path / "4")
    assert {n.op_type for n in rounded} == {"DqxLinearW4A8", "DqxGatedW4A8"}
    assert len(rounded) == len(found)


def test_what_needs_plugins() -> None:
    """Inputs in floats do where operators of ours take them; no weights, no operators."""
    spec, rtx = golden("llada").spec, targets.load("rtx-40")
    by_name = {
        name: make_recipe(name, spec, QuantOptions(), "fp16")
        for name in ("fp16", "w4a16-rtn", "w4a8-rtn")
    }
    for level, names in ((0, {"w4a8-rtn"}), (4, {"w4a16-rtn", "w4a8-rtn"})):
        use = operator_use(rtx, True, level)
        assert {name for name, recipe in by_name.items() if needs_plugins(use, recipe)} == names
    assert not any(needs_plugins(None, recipe) for recipe in by_name.values())
    on_cpu = operator_use(targets.load("cpu"), True, 4)
    assert not any(needs_plugins(on_cpu, recipe) for recipe in by_name.values())


def test_without_operators_a_target_has_standard_ones() -> None:
    assert operator_use(targets.load("rtx-40"), False, 0) is None
    assert operator_use(targets.load("cuda"), False, 0) is None
    cpu = operator_use(targets.load("cpu"), True, 4)
    assert cpu == OperatorUse(float_bits=8)
    assert operator_use(targets.load("cpu"), True, 0) == OperatorUse()


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
