"""The float graphs of both families in ONNX Runtime, against upstream and the float model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.checkpoint import open_checkpoint
from exporter.float_session import FloatModel, FloatSession
from exporter.graph_builder import IR_VERSION
from exporter.graph_kind import GraphKind
from exporter.reductions import SUPPRESSED
from exporter.runtime.session import Array, Bools, Ints, Reductions, Session
from exporter.runtime.session_ort import OrtSession
from ort_ops.function_body import OPSET
from tests.fixtures_lower import (
    CANVAS,
    GOLDEN,
    GOLDEN_FAMILIES,
    KINDS,
    TWO_FP32,
    Lowered,
    check_reductions,
    golden,
    golden_variant,
    logits_cases,
    lower,
)
from tests.graph_text import LISTINGS, listings

each_family = pytest.mark.parametrize("family", GOLDEN_FAMILIES)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
WITHOUT_CACHE = [kind for kind in KINDS if not kind.cached]  # test_cached_graph.py has the others
SAMPLE = GraphKind(sample=True)
EOT = 197  # of llada, which then has two special ids


@dataclass(frozen=True)
class Pair:
    """A family's fp32 graphs, opened, and the float model."""

    lowered: Lowered
    graphs: dict[str, OrtSession]
    model: FloatSession


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    found = {}
    for family in GOLDEN_FAMILIES:
        checkpoint = open_checkpoint(GOLDEN / family, eot_id=EOT if family == "llada" else None)
        lowered = lower(checkpoint, "fp32", tmp_path_factory.mktemp(family))
        graphs = {kind.name: lowered.session(kind) for kind in WITHOUT_CACHE}
        model = FloatSession(FloatModel(checkpoint), checkpoint.spec.vocab_size)
        found[family] = Pair(lowered, graphs, model)
    return found


# Structure


@each_family
def test_the_graph_is_the_one_on_record(family: str) -> None:
    """`python -m tests.graph_text` rewrites the record."""
    for name, text in listings(family).items():
        assert text == (LISTINGS / name).read_text(), name


def test_a_kind_has_a_name_and_outputs() -> None:
    assert [kind.name for kind in KINDS] == [
        "full", "full-sample", "full-guided", "full-guided-sample",
        "cached", "cached-sample", "cached-guided", "cached-guided-sample",
    ]  # fmt: skip
    assert GraphKind().outputs == ["id1", "l1", "rest", "l_held"]
    assert set(SAMPLE.outputs) - set(GraphKind().outputs) == {
        "l2", "entropy", "topk_ids", "topk_logits", "rest_t",
    }  # fmt: skip
    assert GraphKind(logits=True).outputs[-1] == "logits"


@each_family
@each_kind
def test_graphs_are_valid_standard_onnx(
    family: str, kind: GraphKind, pairs: dict[str, Pair]
) -> None:
    file = pairs[family].lowered.graph(kind)
    onnx.checker.check_model(file, full_check=True)
    model = onnx.load(file, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert {node.domain for node in model.graph.node} <= {""}
    assert not model.functions
    kept = [f"{n}_{i}" for i in range(pairs[family].lowered.checkpoint.spec.layers) for n in "kv"]
    kept = kept if kind.cached else []
    names = ["input_ids", *["start"] * kind.cached, "key_mask", "window", *kept]
    names += ["cfg_scale"] * kind.guided + ["suppress", "special_bias"]
    names += ["temperature"] * kind.sample
    assert [value.name for value in model.graph.input] == names
    outputs = [f"{name}_out" for name in kept] + kind.outputs
    assert [value.name for value in model.graph.output] == outputs


@each_family
@each_kind
def test_a_graph_file_holds_no_weights(
    family: str, kind: GraphKind, pairs: dict[str, Pair]
) -> None:
    lowered = pairs[family].lowered
    model = onnx.load(lowered.graph(kind), load_external_data=False)
    stored = {t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL}
    assert stored == lowered.stored.tensors.keys()
    small = [t for t in model.graph.initializer if t.name not in stored]
    assert all(len(t.raw_data) <= 8 * 8 for t in small)


# Numbers


@each_family
def test_logits_are_those_of_upstream(family: str, tmp_path: Path) -> None:
    """The debugging output: raw, neither shifted nor suppressed, at every real position."""
    lowered = lower(golden(family), "fp32", tmp_path, logits=True)
    session = lowered.session(GraphKind(logits=True))
    bias = np.zeros((2, 1), np.float32)
    for case in logits_cases(family):
        window = np.arange(case.ids.shape[1])
        found = session.forward(
            case.ids, case.key_mask, window, bias, None, None, frozenset({"logits"})
        )
        difference = np.abs(found["logits"] - case.logits)[case.key_mask]
        assert difference.max() <= TWO_FP32, case.name


@dataclass(frozen=True)
class Question:
    """The arguments of a forward call, unguided."""

    ids: Ints
    key_mask: Bools
    window: Ints
    bias: Array
    cfg_scale: float
    temperature: float

    def ask(self, session: Session, kind: GraphKind, mask_id: int) -> Reductions:
        """Guided, the unconditional rows have every other token masked."""
        ids, key_mask = self.ids, self.key_mask
        if kind.guided:
            blank = np.where(np.arange(ids.shape[1]) % 2, ids, mask_id)
            ids, key_mask = np.concatenate([ids, blank]), np.concatenate([key_mask, key_mask])
        guidance = self.cfg_scale if kind.guided else None
        temperature = self.temperature if kind.sample else None
        wanted = frozenset(SAMPLE.outputs if isinstance(session, FloatSession) else kind.outputs)
        return session.forward(ids, key_mask, self.window, self.bias, guidance, temperature, wanted)


@st.composite
def questions(draw: st.DrawFn, vocab: int, special: int) -> Question:
    """Left-padded rows, any window in any order, biases on special ids."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(2, CANVAS))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    padding = [draw(st.integers(0, length - 1)) for _ in range(rows)]
    bias = [draw(st.sampled_from([0.0, -2.0, 1.0, SUPPRESSED])) for _ in range(2 * special)]
    return Question(
        rng.integers(0, vocab, (rows, length)),
        np.arange(length) >= np.asarray(padding)[:, None],
        np.asarray(draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=12))),
        np.asarray(bias, np.float32).reshape(2, special),
        draw(st.sampled_from([0.0, 0.5, 2.0])),
        draw(st.sampled_from([0.3, 1.0, 1.7])),
    )


@each_family
@pytest.mark.parametrize("kind", WITHOUT_CACHE, ids=[kind.name for kind in WITHOUT_CACHE])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_graphs_agree_with_the_float_model(
    family: str, kind: GraphKind, pairs: dict[str, Pair], data: st.DataObject
) -> None:
    pair = pairs[family]
    spec = pair.lowered.checkpoint.spec
    question = data.draw(questions(spec.vocab_size, len(spec.special_ids)))
    want = question.ask(pair.model, kind, spec.mask_id)
    got = question.ask(pair.graphs[kind.name], kind, spec.mask_id)
    assert got.keys() == set(kind.outputs)
    assert all(got[name].shape == want[name].shape for name in got)
    # u + (s + 1) (c − u) takes (2 s + 1) times the error of its logits
    error = TWO_FP32 * (2 * question.cfg_scale + 1) if kind.guided else TWO_FP32
    temperature = question.temperature if kind.sample else 1.0
    check_reductions(got, want, error, spec.vocab_size, temperature)


@each_family
def test_reductions_of_one_call_are_those_of_upstream_logits(
    family: str, pairs: dict[str, Pair]
) -> None:
    """No other code of ours between: id1, l1 and rest from the golden logits themselves."""
    pair = pairs[family]
    spec = pair.lowered.checkpoint.spec
    bias = np.zeros((2, len(spec.special_ids)), np.float32)
    for case in logits_cases(family):
        window = np.arange(1, case.ids.shape[1])
        names = frozenset(GraphKind().outputs)
        got = pair.graphs["full"].forward(case.ids, case.key_mask, window, bias, None, None, names)
        rows = window - spec.shift
        logits = case.logits[:, rows].astype(np.float64)
        logits[..., spec.mask_id] = -np.inf
        l1 = logits.max(-1)
        rest = np.exp(logits - l1[..., None]).sum(-1) - 1
        real = case.key_mask[:, rows]
        assert np.array_equal(got["id1"][real], logits.argmax(-1)[real])
        assert np.abs(got["l1"] - l1)[real].max() <= TWO_FP32
        # 1 is subtracted from a float64 sum: 2^-52 of it is lost
        slack = np.expm1(2 * TWO_FP32) * rest + spec.vocab_size * 2.0**-22 * rest + 2.0**-48
        assert (np.abs(got["rest"] - rest) <= slack)[real].all()


@each_family
def test_a_bias_on_a_special_id_works_in_two_ways(family: str, pairs: dict[str, Pair]) -> None:
    """Row 0 keeps the id from being chosen; row 1 takes its odds away and leaves the choice."""
    pair = pairs[family]
    spec = pair.lowered.checkpoint.spec
    case = next(case for case in logits_cases(family) if case.name == "logits_full_half")
    window, last = np.arange(1, 24), spec.special_ids[-1]
    logits = case.logits[:, window - spec.shift].astype(np.float64)
    logits[..., spec.mask_id] = -np.inf

    def ask(row: int, value: float) -> Reductions:
        bias = np.zeros((2, len(spec.special_ids)), np.float32)
        bias[row, -1] = value
        names = frozenset(GraphKind().outputs)
        return pair.graphs["full"].forward(case.ids, case.key_mask, window, bias, None, None, names)

    forced = ask(0, 100.0)
    assert (forced["id1"] == last).all()
    assert np.abs(forced["l1"] - logits[..., last] - 100).max() <= TWO_FP32
    plain, quiet = ask(0, 0.0), ask(1, SUPPRESSED)
    assert np.array_equal(plain["id1"], quiet["id1"])
    assert np.array_equal(plain["l1"], quiet["l1"])
    lost = np.where(plain["id1"] == last, 0, np.exp(logits[..., last] - plain["l1"]))
    slack = np.expm1(2 * TWO_FP32) * plain["rest"] + 2.0**-20
    assert (np.abs(plain["rest"] - quiet["rest"] - lost) <= slack).all()
    assert lost.max() > 100 * slack.min()


def test_a_model_without_special_ids_has_no_such_input(tmp_path: Path) -> None:
    folder = golden_variant("llada", tmp_path / "a", {"eos_token_id": None, "pad_token_id": 0})
    lowered = lower(open_checkpoint(folder), "fp32", tmp_path / "b")
    model = onnx.load(lowered.graph(SAMPLE), load_external_data=False)
    assert "special_bias" not in [value.name for value in model.graph.input]
    ids, keep = np.arange(20)[None], np.ones((1, 20), np.bool_)
    question = Question(ids, keep, np.arange(20), np.zeros((2, 0), np.float32), 0.0, 0.8)
    want = question.ask(FloatSession(FloatModel(lowered.checkpoint), 208), SAMPLE, 200)
    got = question.ask(lowered.session(SAMPLE), SAMPLE, 200)
    check_reductions(got, want, TWO_FP32, 208, 0.8)
