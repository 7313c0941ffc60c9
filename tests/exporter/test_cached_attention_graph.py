"""Graphs whose caches hold codes of attention, against the simulation, for all kinds of targets."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from exporter.checkpoint import open_checkpoint
from exporter.graph_kind import GraphKind
from exporter.kv_cache import FloatCache
from exporter.runtime.loop import generate
from exporter.runtime.session import Array, Session
from exporter.runtime.session_ort import OrtCache, OrtSession
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from ort_ops.attention.op import NAME as ATTENTION
from ort_ops.cached_attention.op import FLOAT_VALUES, NAME, ROTARY
from passes.activations.attention import AttentionGrid
from passes.activations.choose_attention import cheaper_first
from passes.base import Block, Stats
from tests import causal_commit
from tests.fixtures_lower import CANVAS, TWO_FP32, golden
from tests.kept_codes import CACHED, OPTIONS, TARGETS, Made, make

FAMILIES = ("llada", "dream", "sdar", "causal")
ASKED = frozenset({"id1", "l1"})
SIDES = (("k", ""), ("k", "_scale"), ("v", ""))  # names of a block's buffers


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
    found: list[dict[str, Any]] = []
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
    agree(made[family, bits], bits)


def agree(one: Made, bits: int) -> None:
    """In nearly all calls nothing falls to the other side of a half."""
    special = len(one.checkpoint.spec.special_ids)
    agreed, asked = 0, 0
    for target in TARGETS:
        session = one.graph(target)
        for seed in range(4):
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
    assert agreed / asked > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_operators_are_those_of_the_target(family: str, made: dict[tuple[str, int], Made]) -> None:
    """Queries and keys are turned by our operator, unless something comes in between."""
    plugin = {"llada": NAME, "causal": NAME}.get(family, ROTARY)
    for bits in OPTIONS:
        found = made[family, bits].operators
        assert found["cpu"] == {ATTENTION} and not found["standard"]
        assert found["jetson-orin"] == found["jetson-orin-jp62"] == {ATTENTION, plugin}


@dataclass(frozen=True)
class EachItsOwn:
    """The first block stays on integers, the second has float values, the others floats."""

    def __call__(self, block: Block, /) -> Stats:
        grid = block.attention()
        assert grid is not None and grid.keeps_codes
        if block.name == "block 1":
            grid = cheaper_first(grid)[1]
        elif block.name != "block 0":
            grid = AttentionGrid(k_mean=grid.k_mean)
        block.quantize_attention(grid)
        return {}


@pytest.mark.parametrize("bits", OPTIONS)
@pytest.mark.parametrize("family", ["dream", "sdar"])
def test_blocks_may_differ(family: str, bits: int, tmp_path: Path) -> None:
    """A cache holds what the attention of its block computes with."""
    one = make(golden(family), tmp_path, bits, "w4a16-rtn", steps=[EachItsOwn()])
    plugins = {ATTENTION, ROTARY, ROTARY + FLOAT_VALUES}
    assert one.operators["jetson-orin"] == plugins
    for target in TARGETS:
        kept = one.new(one.graph(target), 2)
        layers = one.checkpoint.spec.layers
        kinds = [kept.buffers[f"{side}_{i}"].data_type() for i in range(layers) for side in "kv"]
        floats = [False, False, False, True, True, True]
        assert [kind == "tensor(float)" for kind in kinds] == floats[: 2 * layers]
        taken = sum(buffer.tensor_size_in_bytes() for buffer in kept.buffers.values())
        assert taken == 2 * CANVAS * one.bytes_a_position
    agree(one, bits)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_cache_the_numbers_are_the_same(
    family: str, target: str, made: dict[tuple[str, int], Made]
) -> None:
    """Of a call on the whole canvas, but where a number falls to the other side of a half."""
    one, special = made[family, 8], len(made[family, 8].checkpoint.spec.special_ids)
    cached, full, agreed, asked = one.graph(target), one.graph(target, GraphKind()), 0, 0
    for seed in range(8):
        call = calls(one, seed)[0]
        call["window"] = call["window"][call["window"] < call["ids"].shape[1]]
        kept = ask(cached, call, one.new(cached, 2), special)["l1"]
        call["key_mask"] = call["key_mask"][:, : call["ids"].shape[1]]
        plain = ask(full, call, None, special)["l1"]
        asked += plain.size
        agreed += int((np.abs(kept - plain) <= TWO_FP32).sum())
    assert agreed / asked > 0.9


@pytest.mark.parametrize("bits", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_targets_decode_the_same(
    family: str, bits: int, made: dict[tuple[str, int], Made]
) -> None:
    """Of TensorRT the function bodies, which turn keys themselves."""
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


@pytest.mark.parametrize("target", ["cpu", "jetson-orin"])
@pytest.mark.parametrize("bits", OPTIONS)
def test_a_cache_takes_what_is_on_record(
    bits: int, target: str, made: dict[tuple[str, int], Made]
) -> None:
    one = made["dream", bits]
    kept = one.new(one.graph(target), 3)
    taken = sum(buffer.tensor_size_in_bytes() for buffer in kept.buffers.values())
    assert taken == 3 * CANVAS * one.bytes_a_position
    names = {f"{name}_{i}{end}" for i in range(3) for name, end in SIDES}
    assert set(kept.buffers) == names


def test_codes_are_written_in_place(
    made: dict[tuple[str, int], Made], capfd: pytest.CaptureFixture[str]
) -> None:
    """By standard operators; ONNX Runtime warns where it copies a buffer before it writes."""
    one = made["llada", 4]
    options = ort.SessionOptions()
    options.log_severity_level = 2
    path = one.bundles["standard"].folder / "graphs" / f"{CACHED.name}.onnx"
    session = OrtSession(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    kept = one.new(session, 2)
    places = {name: buffer.data_ptr() for name, buffer in kept.buffers.items()}
    for call in calls(one, 0):
        ask(session, call, kept, len(one.checkpoint.spec.special_ids))
    assert places == {name: buffer.data_ptr() for name, buffer in kept.buffers.items()}
    assert "in-place" not in capfd.readouterr().err
