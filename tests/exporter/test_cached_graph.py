"""Graphs that keep keys and values, in ONNX Runtime, against the float model that keeps its own."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.checkpoint import open_checkpoint
from exporter.float_session import FloatSession
from exporter.graph_kind import GraphKind
from exporter.kv_cache import FloatCache
from exporter.planner import cache_bytes
from exporter.quant_options import QuantOptions
from exporter.runtime.errors import UserError
from exporter.runtime.loop import generate
from exporter.runtime.session import Array, Bools, Cache, Ints, Reductions, Session
from exporter.runtime.session_ort import OrtCache, OrtSession, choose_graph
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from exporter.simulate import simulated
from exporter.tasks import reference_folder
from tests.fixtures_lower import (
    CANVAS,
    FP16_ERROR,
    KINDS,
    TWO_FP32,
    Lowered,
    check_reductions,
    golden,
    lower,
)

FAMILIES = ("llada", "dream", "sdar", "llada2", "lladamoe", "reference")
CACHED = [kind for kind in KINDS if kind.cached]
PLAIN, SAMPLE = GraphKind(sample=True), GraphKind(sample=True, cached=True)
BASE = GraphKind(cached=True)
ALL = frozenset(SAMPLE.outputs)
SHORT: dict[str, Any] = {"gen_length": 16, "block_length": 8, "early_stop": False}

each_family = pytest.mark.parametrize("family", FAMILIES)
# each family with every output, each kind with one that has a shift
asked = [*((family, SAMPLE) for family in FAMILIES), *(("dream", k) for k in CACHED if k != SAMPLE)]


@dataclass(frozen=True)
class Pair:
    """Graphs of a family, and the model that they compute in torch."""

    lowered: Lowered
    model: FloatSession
    opened: dict[GraphKind, OrtSession] = field(default_factory=dict)

    def graph(self, kind: GraphKind) -> OrtSession:
        return self.opened.get(kind) or self.opened.setdefault(kind, self.lowered.session(kind))


def pair(
    family: str, folder: Path, recipe: str = "fp32", quant: QuantOptions | None = None,
    fp16: bool = False,
) -> Pair:  # fmt: skip
    reference = family == "reference"
    checkpoint = open_checkpoint(reference_folder()) if reference else golden(family)
    lowered = lower(checkpoint, recipe, folder, quant, compute="fp16" if fp16 else "fp32")
    model = simulated(checkpoint, lowered.quantized, lowered.recipe)
    return Pair(lowered, FloatSession(model, lowered.bundle.model.vocab_size))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {family: pair(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@dataclass(frozen=True)
class Call:
    """Tokens that are fed from `start` on, and what is asked of them."""

    ids: Ints  # [B, Q]
    key_mask: Bools  # [B, capacity]
    window: Ints
    bias: Array
    start: int = 0

    def ask(
        self, session: Session, kept: Cache | None, cfg_scale: float | None = None,
        temperature: float | None = None, wanted: frozenset[str] = ALL,
    ) -> Reductions:  # fmt: skip
        return session.forward(
            self.ids, self.key_mask, self.window, self.bias, cfg_scale, temperature, wanted,
            kept, self.start,
        )  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn, vocab: int, special: int, shift: bool) -> list[Call]:
    """The whole canvas, then parts of it with other tokens; rows and padding stay the same."""
    rows, length = 2 * draw(st.integers(1, 2)), draw(st.integers(2, CANVAS))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shown = np.arange(CANVAS) >= rng.integers(0, length, (rows, 1))
    shown[:, draw(st.integers(length, CANVAS)) :] = False
    calls = []
    for number in range(draw(st.integers(2, 4))):
        start = draw(st.integers(0, length - 1)) if number else 0
        stop = draw(st.integers(start + 1, length)) if number else length
        allowed = np.arange(start + (shift and start > 0), stop + shift)
        window = draw(st.lists(st.sampled_from(allowed.tolist()), max_size=6))
        bias = rng.choice(np.asarray([0.0, -2.0, 1.0], np.float32), (2, special))
        ids = rng.integers(0, vocab, (rows, stop - start))
        calls.append(Call(ids, shown, np.asarray(window, np.int64), bias, start))
    return calls


@pytest.mark.parametrize(
    ("family", "kind"), asked, ids=[f"{family}-{kind.name}" for family, kind in asked]
)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_cached_graphs_agree_with_the_float_model(
    family: str, kind: GraphKind, pairs: dict[str, Pair], data: st.DataObject
) -> None:
    spec = pairs[family].lowered.checkpoint.spec
    session, model = pairs[family].graph(kind), pairs[family].model
    calls = data.draw(conversations(model.used_vocab, len(spec.special_ids), spec.shift))
    cfg_scale = data.draw(st.sampled_from([0.5, 2.0])) if kind.guided else None
    temperature = data.draw(st.sampled_from([0.3, 1.7])) if kind.sample else None
    caches = [one.new_cache(len(calls[0].ids), CANVAS) for one in (session, model)]
    # u + (s + 1) (c − u) takes (2 s + 1) times the error of its logits
    error = TWO_FP32 * (2 * cfg_scale + 1) if cfg_scale is not None else TWO_FP32
    for call in calls:
        got = call.ask(session, caches[0], cfg_scale, temperature, frozenset(kind.outputs))
        want = call.ask(model, caches[1], cfg_scale, temperature)
        assert got.keys() == set(kind.outputs)
        if len(call.window):
            assert all(got[name].shape == want[name].shape for name in got)
            check_reductions(got, want, error, spec.vocab_size, temperature or 1.0)
        else:
            assert {array.shape for array in got.values()} == {want["l1"].shape}


DECODINGS = [
    ("llada", Settings(sampler="threshold", threshold=0.2, cache="dual", **SHORT)),
    ("llada", Settings(cache="prefix", steps=8, cfg_scale=0.5, **SHORT)),
    ("sdar", Settings(sampler="sdar-static", cache="exact", **SHORT)),
    ("llada2", Settings(sampler="llada2-threshold", threshold=0.3, cache="exact", **SHORT)),
]


@pytest.mark.parametrize(("family", "how"), DECODINGS, ids=[f"{f}-{s.cache}" for f, s in DECODINGS])
def test_the_loop_decodes_the_same(family: str, how: Settings, pairs: dict[str, Pair]) -> None:
    """Prompts of two lengths, with the graphs and with the float model."""
    made = pairs[family]
    facts = made.lowered.bundle.model
    how = replace(how, block_length=facts.block_length or how.block_length)
    prompts = [row.tolist() for row in tokens(190, rows=2, length=11)]
    answers = []
    for model in (made.graph(GraphKind(cached=True, guided=how.cfg_scale > 0)), made.model):
        task = make_canvas([prompts[0], prompts[1][:7]], how.gen_length, facts)
        answers.append(generate(model, facts, how, *task).canvas.tolist())
    assert answers[0] == answers[1]


# What stands in the buffers


def tokens(vocab: int, rows: int = 2, length: int = 24, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(0, vocab, (rows, length))


def whole(made: Pair, ids: Ints, capacity: int | None = None) -> Call:
    """A call on the whole canvas, whose second row has 4 padded positions."""
    spec, length = made.lowered.checkpoint.spec, ids.shape[1]
    shown = np.arange(capacity or length) >= np.asarray([0, 4])[:, None]
    shown &= np.arange(capacity or length) < length
    bias = np.zeros((2, len(spec.special_ids)), np.float32)
    return Call(ids, shown, np.arange(int(spec.shift), length), bias)


def part(made: Pair, call: Call, lo: int, hi: int) -> Call:
    """The call that feeds [lo, hi) of the same canvas and asks for its rows."""
    shift = int(made.lowered.checkpoint.spec.shift)
    window = np.arange(lo + shift, min(hi + shift, call.ids.shape[1]))
    return Call(call.ids[:, lo:hi], call.key_mask, window, call.bias, lo)


@each_family
def test_buffers_hold_the_float_models_keys_and_values(family: str, pairs: dict[str, Pair]) -> None:
    made, session = pairs[family], pairs[family].graph(BASE)
    call = whole(made, tokens(made.model.used_vocab), capacity=30)
    kept, want = session.new_cache(2, 30), made.model.new_cache(2, 30)
    for one in (call, part(made, whole(made, call.ids + 1, 30), 8, 12)):
        one.ask(session, kept, wanted=frozenset({"id1"}))
        one.ask(made.model, want)
    assert isinstance(kept, OrtCache)
    assert (kept.rows, kept.length) == (2, 30)
    for index in range(made.lowered.checkpoint.spec.layers):
        for name, tensor in ((f"k_{index}", want.keys), (f"v_{index}", want.values)):
            found = kept.buffers[name].numpy()
            assert not found[:, :, 24:].any(), "nobody wrote there"
            assert np.abs(found - tensor[index].numpy()).max() <= TWO_FP32


def test_buffers_are_written_in_place(
    pairs: dict[str, Pair], capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime warns where it copies a buffer before it writes into it."""
    options, made = ort.SessionOptions(), pairs["dream"]
    options.log_severity_level = 2
    path = made.lowered.graph(SAMPLE)
    session = OrtSession(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    call = whole(made, tokens(200))
    kept, other = session.new_cache(2, 24), session.new_cache(2, 24)
    places = {name: buffer.data_ptr() for name, buffer in kept.buffers.items()}
    call.ask(session, kept)
    part(made, call, 8, 12).ask(session, kept)
    assert places == {name: buffer.data_ptr() for name, buffer in kept.buffers.items()}
    assert "in-place" not in capfd.readouterr().err
    binding = session._session.io_binding()
    feeds = {"input_ids": call.ids, "key_mask": call.key_mask, "window": call.window}
    feeds |= {"special_bias": call.bias, "start": np.zeros(1, np.int64)}
    for name, array in {**feeds, "temperature": np.ones(1, np.float32)}.items():
        binding.bind_cpu_input(name, array)
    for name in kept.buffers:
        binding.bind_ortvalue_input(name, kept.buffers[name])
        binding.bind_ortvalue_output(f"{name}_out", other.buffers[name])
    session._session.run_with_iobinding(binding)
    assert "in-place optimization not activated" in capfd.readouterr().err, "the check works"


def test_a_call_without_a_window_fills_the_buffers(pairs: dict[str, Pair]) -> None:
    made, session = pairs["sdar"], pairs["sdar"].graph(BASE)
    call = whole(made, tokens(190))
    caches = [session.new_cache(2, 24) for _ in range(2)]
    call.ask(session, caches[0], wanted=frozenset({"id1"}))
    empty = Call(call.ids, call.key_mask, np.zeros(0, np.int64), call.bias)
    assert empty.ask(session, caches[1], wanted=frozenset()) == {}
    for name in caches[0].buffers:
        first, second = (one.buffers[name].numpy() for one in caches)
        assert first.any()
        assert np.array_equal(first, second)


# Other arithmetic


ROUNDED = QuantOptions(q_bits=8, k_bits=8, v_bits=8, p_bits=8)


@pytest.mark.parametrize(
    ("family", "recipe"), [("llada", "w4a8-rtn"), ("dream", "w8a8-rtn"), ("sdar", "w4a16-rtn")]
)
def test_a_refresh_of_quantized_graphs_is_their_full_call(
    family: str, recipe: str, tmp_path: Path
) -> None:
    """Bit for bit: the same sums in the same order, and the same codes. So is what is fed again:
    codes and their scales belong to single tokens, except that of the mean key, which has not
    changed.
    """
    made = pair(family, tmp_path, recipe, ROUNDED)
    assert made.lowered.recipe.attention is not None
    session, call = made.graph(SAMPLE), whole(made, tokens(made.model.used_vocab))
    kept = session.new_cache(2, 24)
    plain, refreshed = call.ask(made.graph(PLAIN), None), call.ask(session, kept)
    assert all(np.array_equal(plain[name], refreshed[name]) for name in ALL)
    before = {name: buffer.numpy().copy() for name, buffer in kept.buffers.items()}
    again = part(made, call, 12, 16)
    found = again.ask(session, kept)
    columns = again.window - call.window[0]
    assert np.abs(found["l1"] - plain["l1"][:, columns]).max() <= TWO_FP32
    for name, buffer in kept.buffers.items():
        assert np.abs(buffer.numpy() - before[name]).max() <= TWO_FP32


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_buffers_hold_what_is_not_yet_rounded(family: str, tmp_path: Path) -> None:
    """Keys and values of the first block, before anything is rounded a token."""
    made = pair(family, tmp_path, "w4a16-rtn", ROUNDED)
    call = whole(made, tokens(made.model.used_vocab))
    session = made.graph(BASE)
    kept, want = session.new_cache(2, 24), made.model.new_cache(2, 24)
    call.ask(session, kept, wanted=frozenset({"id1"}))
    call.ask(made.model, want)
    assert isinstance(want, FloatCache)
    assert np.abs(kept.buffers["k_0"].numpy() - want.keys[0].numpy()).max() <= TWO_FP32
    assert np.abs(kept.buffers["v_0"].numpy() - want.values[0].numpy()).max() <= TWO_FP32


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_fp16_graphs_keep_halves(family: str, tmp_path: Path) -> None:
    made = pair(family, tmp_path, "fp16", fp16=True)
    session, call = made.graph(BASE), whole(made, tokens(made.model.used_vocab))
    kept, want = session.new_cache(2, 24), made.model.new_cache(2, 24)
    assert {buffer.numpy().dtype for buffer in kept.buffers.values()} == {np.dtype(np.float16)}
    for one in (call, part(made, whole(made, call.ids[:, ::-1].copy()), 12, 16)):
        got = one.ask(session, kept, wanted=frozenset({"l1"}))
        assert np.abs(got["l1"] - one.ask(made.model, want)["l1"]).max() <= FP16_ERROR


# Fewer bits


def stands_for(kept: OrtCache, name: str) -> Array:
    """The keys or values that a buffer of whole numbers holds."""
    codes = kept.buffers[name].numpy()
    if codes.dtype == np.uint8:
        codes = np.concatenate([codes & 15, codes >> 4], -1).astype(np.int8) - 8
    return np.asarray(codes * kept.buffers[f"{name}_scale"].numpy())


def same_codes(kept: OrtCache, want: FloatCache) -> bool:
    """Whether no number fell to the other side of the middle between two codes."""
    return all(
        (
            np.abs(stands_for(kept, name) - tensor) <= 0.1 * kept.buffers[f"{name}_scale"].numpy()
        ).all()
        for index in range(len(want.keys))
        for name, tensor in (
            (f"k_{index}", want.keys[index].numpy()),
            (f"v_{index}", want.values[index].numpy()),
        )
    )


@pytest.mark.parametrize(
    ("family", "bits", "fp16"),
    [("llada", 8, False), ("dream", 4, False), ("sdar", 8, False), ("dream", 8, True)],
)
def test_kept_in_fewer_bits(family: str, bits: int, fp16: bool, tmp_path: Path) -> None:
    """Canvases are short, so that for some of them all codes agree; then logits do too."""
    recipe = "fp16" if fp16 else "fp32"
    made = pair(family, tmp_path, recipe, QuantOptions(kv_bits=bits), fp16)
    session, agreed = made.graph(BASE), 0
    for seed in range(10):
        call = whole(made, tokens(made.model.used_vocab, length=6, seed=seed))
        kept, want = session.new_cache(2, 6), made.model.new_cache(2, 6)
        types = {kept.buffers[name].numpy().dtype for name in ("k_0", "v_1")}
        assert types == {np.dtype(np.int8 if bits == 8 else np.uint8)}
        found = [
            (one.ask(session, kept, wanted=frozenset({"l1"})), one.ask(made.model, want))
            for one in (call, part(made, call, 3, 5))
        ]
        for name, tensor in (("k_0", want.keys[0]), ("v_0", want.values[0])):
            # another code at most; in fp16 its input may be some 2^-11 of 127 steps away before
            step = kept.buffers[f"{name}_scale"].numpy() * (2 if fp16 else 1.001)
            assert (np.abs(stands_for(kept, name) - tensor.numpy()) <= step).all()
        if same_codes(kept, want):
            agreed += 1
            for got, expected in found:
                error = FP16_ERROR if fp16 else TWO_FP32
                assert np.abs(got["l1"] - expected["l1"]).max() <= error
    assert agreed >= (0 if fp16 else 2)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("fp16", [False, True])
def test_a_cache_takes_what_is_on_record(bits: int, fp16: bool, tmp_path: Path) -> None:
    recipe = "fp16" if fp16 else "fp32"
    made = pair("dream", tmp_path, recipe, QuantOptions(kv_bits=bits), fp16)
    kept = made.graph(BASE).new_cache(3, 10)
    taken = sum(buffer.tensor_size_in_bytes() for buffer in kept.buffers.values())
    lowered = made.lowered
    assert taken == 3 * 10 * cache_bytes(lowered.checkpoint.spec, lowered.recipe)


# Choice


def test_a_session_with_a_cache_takes_a_cached_graph(pairs: dict[str, Pair]) -> None:
    bundle = pairs["llada"].lowered.bundle
    names = [
        choose_graph(bundle, guided, wanted, cached).name
        for cached in (False, True)
        for guided in (False, True)
        for wanted in (frozenset({"id1"}), frozenset({"entropy"}))
    ]
    assert names == [kind.name for kind in KINDS]
    without = replace(bundle, graphs=tuple(g for g in bundle.graphs if not g.cached))
    with pytest.raises(UserError, match="no cached guided graph with the outputs id1; it has full"):
        choose_graph(without, True, frozenset({"id1"}), cached=True)
