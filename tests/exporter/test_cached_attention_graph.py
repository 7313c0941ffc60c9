"""Graphs whose caches hold codes of attention, against the simulation, for all kinds of targets."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.float_session import FloatSession
from exporter.graph_kind import GraphKind, graph_kinds
from exporter.graph_rules import rules_of
from exporter.kv_cache import FloatCache
from exporter.lower import write_graphs, write_weights
from exporter.operator_use import operator_use
from exporter.planner import cache_bytes
from exporter.progress import Progress
from exporter.prompts import used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.runtime.bundle import Bundle, Graph, RuntimeFacts
from exporter.runtime.loop import generate
from exporter.runtime.session import Array, Session
from exporter.runtime.session_ort import OrtCache, OrtSession, open_session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from exporter.simulate import simulated, turned
from ort_ops.attention.op import NAME as ATTENTION
from ort_ops.build import compiler, prebuild
from ort_ops.cached_attention.op import NAME, ROTARY
from tests import causal_commit
from tests.fixtures_lower import CANVAS, TWO_FP32, golden
from tests.made_up_states import run_passes

CACHED = GraphKind(cached=True)
FAMILIES = ("llada", "dream", "sdar", "causal")
TARGETS = ("cpu", "standard", "jetson-orin", "jetson-orin-jp62")
ASKED = frozenset({"id1", "l1"})
OPTIONS = {
    bits: QuantOptions(q_bits=8, p_bits=8, k_bits=bits, v_bits=bits, kv_bits=bits, p_scale="row")
    for bits in (8, 4)
}


@dataclass(frozen=True)
class Made:
    """One quantized model: its simulation, and its graphs for each target."""

    checkpoint: Checkpoint
    model: FloatSession
    bundles: dict[str, Bundle]
    bytes_a_position: int

    def graph(self, target: str, kind: GraphKind = CACHED) -> OrtSession:
        wanted = frozenset(kind.outputs)
        return open_session(self.bundles[target], False, wanted, threads=1, cached=kind.cached)

    def new(self, session: Session, rows: int) -> Any:
        return session.new_cache(rows, CANVAS)


def make(checkpoint: Checkpoint, folder: Path, bits: int, recipe_name: str) -> Made:
    spec = checkpoint.spec
    recipe = make_recipe(recipe_name, spec, OPTIONS[bits], "fp32")
    quantized = run_passes(checkpoint, recipe, folder / "work")
    described = describe_model(checkpoint, "0" * 64, used_vocabulary(checkpoint), CANVAS)
    facts, source, bundles = loop_facts(described), turned(checkpoint, recipe), {}
    kinds = graph_kinds(False, spec.can_cast_shadow)
    graphs = tuple(
        Graph(k.name, f"graphs/{k.name}.onnx", k.guided, tuple(k.outputs), k.cached) for k in kinds
    )
    for name in TARGETS:
        draft, target = folder / name, targets.load("cpu" if name == "standard" else name)
        draft.mkdir()
        stored = write_weights(source, quantized, recipe, facts, draft, Progress())
        use, rules = operator_use(target, name != "standard", 0), rules_of(target, CANVAS)
        operators = write_graphs(spec, stored, recipe, kinds, draft, use, rules)
        runtime = RuntimeFacts("onnxruntime", ("CPUExecutionProvider",), 0)
        ours = tuple(operators) if name == "cpu" and compiler() else ()  # others' have no kernel
        bundles[name] = Bundle(draft, facts, Settings(), runtime, graphs, ours)
        (draft / "plugins").mkdir()
        if ours:
            (draft / "plugins" / prebuild().name).symlink_to(prebuild())
        turned_inside = recipe.rotation is None and spec.query_scale is None
        own = ROTARY if turned_inside else NAME
        found = {n for n in operators if "Attention" in n}
        assert found == {"cpu": {ATTENTION}, "standard": set()}.get(name, {ATTENTION, own})
    model = FloatSession(simulated(checkpoint, quantized, recipe), facts.vocab_size)
    return Made(checkpoint, model, bundles, cache_bytes(spec, recipe))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Made]:
    found = {}
    for family in FAMILIES:
        for bits in OPTIONS:
            folder = tmp_path_factory.mktemp(f"{family}-{bits}")
            if family == "causal":
                checkpoint = open_checkpoint(causal_commit.write(folder / "checkpoint", seed=3))
            else:
                checkpoint = golden(family)
            # rotations of queries and keys where the family's channels allow for them
            name = "w4a16-quarot" if family == "llada" else "w4a16-rtn"
            found[family, bits] = make(checkpoint, folder, bits, name)
    return found


def calls(made: Made, seed: int) -> list[dict[str, Any]]:
    """A canvas in parts, each fed before it is shown; of two rows one is padded."""
    spec, rng = made.checkpoint.spec, np.random.default_rng(seed)
    length = 12
    ids = rng.integers(0, made.model.used_vocab, (2, length))
    found = []
    for start, stop in ((0, 8), (8, 12), (4, 12)):
        shown = np.arange(CANVAS) >= np.asarray([[0], [4]])
        shown &= np.arange(CANVAS) < (length if found else stop)
        found.append(
            {"ids": ids[:, start:stop], "key_mask": shown, "start": start,
             "window": np.arange(start + spec.shift, min(stop + spec.shift, length)),
             "causal": bool(seed % 2) and spec.commits_causally}
        )  # fmt: skip
        ids = ids.copy()
        ids[:, 8:] = rng.integers(0, made.model.used_vocab, (2, 4))
    return found


def ask(session: Session, call: dict[str, Any], kept: Any, special: int) -> dict[str, Array]:
    bias = np.zeros((2, special), np.float32)
    return session.forward(
        call["ids"], call["key_mask"], call["window"], bias, None, None, ASKED, kept,
        call["start"], call["causal"],
    )  # fmt: skip


def keys_of(kept: OrtCache, bits: int) -> tuple[Array, Array]:
    """What the keys of block 0 stand for, and their scales."""
    codes, scales = kept.buffers["k_0"].numpy(), kept.buffers["k_0_scale"].numpy()
    if bits == 4:
        pairs = codes.view(np.uint8)
        codes = np.concatenate([pairs & 15, pairs >> 4], -1).astype(np.int8) - 8
    return np.asarray(codes * scales), scales


@pytest.mark.parametrize("bits", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_agree_with_the_simulation(
    family: str, bits: int, made: dict[tuple[str, int], Made]
) -> None:
    """Calls are short, so that in most no number falls to the other side of a half: then logits are
    those of two fp32 evaluations. In the others a code is another by one.
    """
    one, special = made[family, bits], len(made[family, bits].checkpoint.spec.special_ids)
    agreed, asked = 0, 0
    for target in TARGETS:
        session = one.graph(target)
        for seed in range(6):
            kept, want = one.new(session, 2), one.new(one.model, 2)
            assert isinstance(want, FloatCache)
            for call in calls(one, seed):
                got = ask(session, call, kept, special)["l1"]
                expected = ask(one.model, call, want, special)["l1"]
                asked += got.size
                agreed += int((np.abs(got - expected) <= TWO_FP32).sum())
                written = slice(call["start"], call["start"] + call["ids"].shape[1])
                keys, scales = keys_of(kept, bits)
                apart = np.abs(keys - want.keys[0].numpy())[:, :, written]
                assert (apart <= 1.01 * scales[:, :, written]).all()
                assert np.mean(apart <= 0.01 * scales[:, :, written]) > 0.99
    assert agreed / asked > 0.7


@pytest.mark.parametrize("bits", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_targets_decode_the_same(
    family: str, bits: int, made: dict[tuple[str, int], Made]
) -> None:
    """Of TensorRT's the function bodies, which turn keys themselves and take them from the cache."""
    one = made[family, bits]
    facts = one.bundles["cpu"].model
    block = facts.block_length or 8
    cache = "exact" if facts.attention == "block-causal" else "dual"
    how = Settings(gen_length=2 * block, block_length=block, cache=cache, early_stop=False)
    if family == "causal":
        how = replace(how, sampler="nemotron")
    task = make_canvas([[5, 7, 9], [11, 12, 13, 14, 15]], how.gen_length, facts)
    answers = [generate(one.graph(name), facts, how, *task).canvas.tolist() for name in TARGETS]
    assert all(answer == answers[0] for answer in answers)
