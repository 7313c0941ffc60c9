"""Graphs of every family with nodes of ours, in the parser and the builder of TensorRT for RTX.

In the forms of all versions of TensorRT: what stands in for them reads each.
"""

from pathlib import Path

import onnx
import pytest

import targets
from exporter.engine_plans import plan_engines
from exporter.graph_kind import GraphKind
from exporter.graph_rules import rules_of
from exporter.operator_use import operator_use
from exporter.quant_options import QuantOptions
from exporter.runtime.settings import Settings
from tests.fixtures_lower import CANVAS, golden, lower
from tests.plugin_harness import needs_plugins
from tests.rtx_builder import Job, build_all, shapes_of

pytestmark = [pytest.mark.trt, needs_plugins]

FAMILIES = ("llada", "dream", "sdar", "llada2", "lladamoe")
KINDS = (GraphKind(), GraphKind(cached=True))
# our linears take a shorter last group, of which sdar has some; DequantizeLinear of its head not
QUANT = QuantOptions(kv_bits=8, head_bits=16)


@pytest.fixture(scope="module", autouse=True)
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")


@pytest.mark.parametrize("plugins", [True, False], ids=["plugins", "standard"])
@pytest.mark.parametrize("target", ["rtx-50", "jetson-orin", "jetson-orin-jp62"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds(
    family: str, target: str, plugins: bool, library: Path, tmp_path: Path
) -> None:
    """With nodes of ours in all places that may have some, and in standard operators alone."""
    made_for = targets.load(target)
    use, rules = operator_use(made_for, plugins, 0), rules_of(made_for, CANVAS)
    recipe = "w4a8-rtn" if plugins else "fp16" if family == "sdar" else "w4a16-rtn"
    lowered = lower(
        golden(family), recipe, tmp_path / "lowered", QUANT if plugins else QuantOptions(),
        compute="fp16", rules=rules, operators=use,
    )  # fmt: skip
    plans = {p.graph: p for p in plan_engines(KINDS, Settings(gen_length=16), CANVAS, 1)}
    jobs = []
    for kind in KINDS:
        model = onnx.load(lowered.graph(kind))  # with its weights
        spans = plans[kind.name].profiles[-1]
        jobs.append(Job(model.SerializeToString(), shapes_of(model, spans)))
    given = library if plugins else None
    for kind, built in zip(KINDS, build_all(jobs, given, tmp_path / "rtx"), strict=True):
        assert built.engine, built.errors
        nodes = [node.op_type for node in onnx.load(lowered.graph(kind)).graph.node if node.domain]
        assert bool(nodes) == plugins
        assert built.layers.count("PLUGIN_V3") == len(nodes)
