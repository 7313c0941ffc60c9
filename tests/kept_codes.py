"""Small models whose caches hold codes of attention, with graphs for all kinds of targets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import targets
from exporter.checkpoint import Checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.float_session import FloatSession
from exporter.graph_kind import GraphKind, graph_kinds
from exporter.graph_rules import rules_of
from exporter.lower import write_graphs, write_weights
from exporter.operator_use import operator_use
from exporter.planner import cache_bytes
from exporter.progress import Progress
from exporter.prompts import used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.recipes import Storage, make_recipe
from exporter.runtime.bundle import Bundle, Graph, RuntimeFacts
from exporter.runtime.session import Session
from exporter.runtime.session_ort import OrtSession, open_session
from exporter.runtime.settings import Settings
from exporter.simulate import simulated, turned
from ort_ops.build import compiler, prebuild
from passes.base import Block, Pass
from tests.fixtures_lower import CANVAS
from tests.made_up_states import run_passes

CACHED = GraphKind(cached=True)
TARGETS = ("cpu", "standard", "jetson-orin", "jetson-orin-jp62")
OPTIONS = {
    bits: QuantOptions(q_bits=8, p_bits=8, kv_bits=bits, k_bits=bits, v_bits=bits)
    for bits in (8, 4)
}


@dataclass(frozen=True)
class Made:
    """One quantized model: its simulation, and its graphs for each target."""

    checkpoint: Checkpoint
    model: FloatSession
    bundles: dict[str, Bundle]
    operators: dict[str, frozenset[str]]  # of attention, by target
    bytes_a_position: int

    def graph(self, target: str, kind: GraphKind = CACHED) -> OrtSession:
        wanted = frozenset(kind.outputs)
        return open_session(self.bundles[target], False, wanted, threads=1, cached=kind.cached)

    def new(self, session: Session, rows: int) -> Any:
        return session.new_cache(rows, CANVAS)


def make(
    checkpoint: Checkpoint, folder: Path, bits: int, recipe_name: str,
    names: Sequence[str] = TARGETS, compute: Storage = "fp32",
    steps: Sequence[Pass[Block]] = (),
) -> Made:  # fmt: skip
    """Run a recipe and write the graphs for the targets `names`; "standard": without operators.

    `steps`: passes more, before weights are rounded.
    """
    spec = checkpoint.spec
    recipe = make_recipe(recipe_name, spec, OPTIONS[bits], compute)
    recipe = replace(recipe, blocks=(*recipe.blocks[:-1], *steps, recipe.blocks[-1]))
    quantized = run_passes(checkpoint, recipe, folder / "work")
    described = describe_model(checkpoint, "0" * 64, used_vocabulary(checkpoint), CANVAS)
    facts, source = loop_facts(described), turned(checkpoint, recipe)
    bundles, made = dict[str, Bundle](), dict[str, frozenset[str]]()
    kinds = graph_kinds(False, spec.can_cast_shadow)
    graphs = tuple(
        Graph(k.name, f"graphs/{k.name}.onnx", k.guided, tuple(k.outputs), k.cached) for k in kinds
    )
    for name in names:
        draft, target = folder / name, targets.load("cpu" if name == "standard" else name)
        draft.mkdir()
        stored = write_weights(source, quantized, recipe, facts, draft, Progress())
        use, rules = operator_use(target, name != "standard", 0), rules_of(target, CANVAS)
        if use is not None and name == "cpu":  # its linears round inputs to 16 bits
            use = replace(use, weight_bits=())
        operators = write_graphs(spec, stored, recipe, kinds, draft, use, rules)
        runtime = RuntimeFacts("onnxruntime", ("CPUExecutionProvider",), 0)
        ours = tuple(operators) if name == "cpu" and compiler() else ()  # others' have no kernel
        bundles[name] = Bundle(draft, facts, Settings(), runtime, graphs, ours)
        (draft / "plugins").mkdir()
        if ours:
            (draft / "plugins" / prebuild().name).symlink_to(prebuild())
        made[name] = frozenset(n for n in operators if "Attention" in n)
    model = FloatSession(simulated(checkpoint, quantized, recipe), facts.vocab_size)
    size = cache_bytes(spec, recipe, [block.attention for block in stored.blocks])
    return Made(checkpoint, model, bundles, made, size)
