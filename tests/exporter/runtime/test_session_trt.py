"""An engine against ONNX Runtime over the same graph, by a stand-in of TensorRT that checks usage.

The stand-in runs the graph on ONNX Runtime too: what is tested is everything around it.
"""

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.graph_kind import GraphKind
from exporter.graph_rules import GraphRules
from exporter.runtime.bundle import Bundle
from exporter.runtime.candidates import wanted
from exporter.runtime.command import main
from exporter.runtime.errors import UserError
from exporter.runtime.loop import generate
from exporter.runtime.open_engine import open_engine
from exporter.runtime.session import Reductions, Session
from exporter.runtime.session_ort import fitting_graphs, open_session
from exporter.runtime.session_trt import TrtSession
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from tests.cuda_stand_in import CudaStandIn
from tests.fixtures_lower import CANVAS, Lowered, golden, lower
from tests.tensorrt_stand_in import (
    Context,
    Engine,
    GraphStrategy,
    Profiler,
    Registry,
    RuntimeConfig,
    TensorrtStandIn,
    install,
    write_engines,
    write_manifest,
)

SETTINGS = Settings(gen_length=16, block_length=8, steps=8)
# Rows of the head are multiplied in other numbers when a window is lengthened. Kernels then may add
# up the 64 products of a logit in another order: 64 roundings, of logits and partial sums below 64
LOGITS = 64 * 64 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """A golden checkpoint as a bundle with engines of all its graphs, for two sequences."""
    folder = tmp_path_factory.mktemp("trt")
    lowered = lower(golden("llada"), "fp32", folder, rules=GraphRules(capacity=CANVAS))
    write_manifest(lowered.bundle)
    write_engines(lowered.bundle.folder, lowered.kinds, SETTINGS, CANVAS, 2, "tensorrt")
    return lowered


@pytest.fixture
def cuda() -> CudaStandIn:
    return CudaStandIn()


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, cuda: CudaStandIn) -> TensorrtStandIn:
    return install(monkeypatch, cuda, "tensorrt")


def opened(bundle: Bundle, kind: GraphKind, cuda_graphs: bool = True) -> TrtSession:
    graphs = fitting_graphs(bundle, kind.guided, frozenset(kind.outputs), kind.cached)
    return open_engine(bundle, graphs, 2, cuda_graphs)


def forward(session: Session, kind: GraphKind, seed: int, **given: Any) -> Reductions:
    """One call with random tokens; `given` in the place of its arguments."""
    draw = np.random.default_rng(seed)
    rows = 2 if kind.guided else 1
    length = given.pop("length", 24)
    shadow = None
    if kind.shadow:
        shadow = np.asarray([[3, 4, -1]], np.int64)
    mask = np.arange(length) > 0 if not given.get("start") else np.arange(CANVAS) < 60
    arguments: dict[str, Any] = {
        "ids": draw.integers(0, 190, (rows, length)),
        "key_mask": np.tile(mask, (rows, 1)),
        "window": np.sort(draw.choice(length, 5, replace=False)) + given.get("start", 0),
        "special_bias": draw.standard_normal((2, 1), np.float32),
        "cfg_scale": 0.5 if kind.guided else None,
        "temperature": 0.7 if "rest_t" in kind.outputs else None,
        "wanted": frozenset(kind.outputs),
        "shadow": shadow,
    }
    return session.forward(**(arguments | given))


def assert_equal(got: Reductions, want: Reductions) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].shape == array.shape, name
        if array.dtype.kind == "i":
            assert np.array_equal(got[name], array), name
        else:  # odds and their like are exponentials of differences of two logits
            bound = LOGITS * 4 * np.maximum(np.abs(array), 1) / 0.7
            assert (np.abs(got[name] - array) <= bound).all(), name


@pytest.mark.parametrize("name", ["full", "full-sample", "full-guided-sample", "full-shadow"])
def test_reductions_are_those_of_onnx_runtime(
    trt: TensorrtStandIn, llada: Lowered, name: str
) -> None:
    """Three times each: directly, recorded, replayed; between them other lengths and windows."""
    (kind,) = (k for k in llada.kinds if k.name == name)
    session, reference = opened(llada.bundle, kind), llada.session(kind)
    for seed in range(3):
        for length in (24, 40, CANVAS - 8):
            found = forward(session, kind, seed, length=length)
            assert_equal(found, forward(reference, kind, seed, length=length))
    assert trt.cuda.captures == 3
    assert trt.cuda.launches == 3


def test_only_what_is_wanted_comes_back(trt: TensorrtStandIn, llada: Lowered) -> None:
    (kind,) = (k for k in llada.kinds if k.name == "full-sample")
    found = forward(opened(llada.bundle, kind), kind, 0, wanted=frozenset({"id1"}))
    assert found.keys() == {"id1"}


def test_windows_beyond_the_profile_are_fed_in_parts(trt: TensorrtStandIn, llada: Lowered) -> None:
    (kind,) = (k for k in llada.kinds if k.name == "full-sample")
    window = np.arange(1, 40)  # 16 at once, the length of an answer
    found = forward(opened(llada.bundle, kind), kind, 0, length=40, window=window)
    assert_equal(found, forward(llada.session(kind), kind, 0, length=40, window=window))


@pytest.mark.parametrize("name", ["cached", "cached-guided-sample"])
def test_caches_change_in_place(trt: TensorrtStandIn, llada: Lowered, name: str) -> None:
    """A canvas, then steps of a block that see it; each cache is its own."""
    (kind,) = (k for k in llada.kinds if k.name == name)
    session, reference = opened(llada.bundle, kind), llada.session(kind)
    rows = 2 if kind.guided else 1
    caches = [(session.new_cache(rows, 60), reference.new_cache(rows, 60)) for _ in range(2)]
    for seed, (mine, other) in enumerate(caches):
        first: dict[str, Any] = {"length": 60, "window": np.zeros(0, np.int64)}
        assert_equal(
            forward(session, kind, seed, cache=mine, **first),
            forward(reference, kind, seed, cache=other, **first),
        )
    for step in range(6):
        for seed, (mine, other) in enumerate(caches):
            given: dict[str, Any] = {"length": 8, "start": 40}
            given["key_mask"] = np.tile(np.arange(60) > 1, (rows, 1))
            assert_equal(
                forward(session, kind, step + 7 * seed, cache=mine, **given),
                forward(reference, kind, step + 7 * seed, cache=other, **given),
            )
    assert trt.cuda.captures == 2  # one a cache: its addresses are part of it


def test_memory_of_caches_is_used_again_and_cleared(trt: TensorrtStandIn, llada: Lowered) -> None:
    (kind,) = (k for k in llada.kinds if k.name == "cached")
    session = opened(llada.bundle, kind)
    for _ in range(3):
        cache = session.new_cache(1, 30)
        blocks = len(trt.cuda.blocks)
        trt.cuda.cudaStreamSynchronize(77)
        for buffer in cache.buffers.values():
            memory = trt.cuda.device(buffer.address, buffer.size)
            assert not memory.any()
            memory[:] = 1
        del cache
        gc.collect()
    assert len(trt.cuda.blocks) == blocks
    session.new_cache(2, 30)
    assert len(trt.cuda.blocks) > blocks


def test_all_memory_is_given_back(trt: TensorrtStandIn, llada: Lowered) -> None:
    (kind,) = (k for k in llada.kinds if k.name == "cached")
    session = opened(llada.bundle, kind)
    for seed in range(3):
        forward(session, kind, seed)
    assert trt.cuda.blocks and trt.cuda.pinned
    trt.contexts.clear()
    del session
    gc.collect()
    assert not trt.cuda.blocks and not trt.cuda.pinned and not trt.cuda.alive


DECODES = (
    ("low-confidence", "none", 0.0), ("low-confidence", "dual", 0.0), ("threshold", "prefix", 0.0),
    ("threshold", "dual", 0.5), ("entropy", "none", 0.5), ("wino", "none", 0.0),
)  # fmt: skip


@pytest.mark.parametrize(("sampler", "cache", "temperature"), DECODES)
def test_whole_decodes_are_equal(
    trt: TensorrtStandIn, llada: Lowered, sampler: str, cache: str, temperature: float
) -> None:
    """Two prompts of unlike lengths at once, and twice: recordings go on being right."""
    settings = replace(SETTINGS, sampler=sampler, cache=cache, temperature=temperature)
    assert_equal_decodes(llada.bundle, replace(settings, threshold=0.3))
    assert trt.cuda.launches


def test_decodes_of_a_block_causal_model_are_equal(trt: TensorrtStandIn, tmp_path: Path) -> None:
    """With a cache that is exact, filled in parts of no window."""
    settings = replace(SETTINGS, sampler="sdar-static", cache="exact", block_length=4, steps=4)
    lowered = lower(golden("sdar"), "fp32", tmp_path, rules=GraphRules(capacity=CANVAS))
    bundle = replace(lowered.bundle, decode=settings)
    write_manifest(bundle)
    write_engines(bundle.folder, lowered.kinds, settings, CANVAS, 2, "tensorrt")
    assert_equal_decodes(bundle, settings)


def assert_equal_decodes(bundle: Bundle, settings: Settings) -> None:
    cached = settings.cache != "none"
    graphs = fitting_graphs(bundle, False, wanted(settings), cached)
    reference = open_session(bundle, False, wanted(settings), threads=1, cached=cached)
    session = open_engine(bundle, graphs, 2)
    for prompts in ([[5, 7, 9], [1, 2, 3, 4, 6]], [[8, 8, 8], [3, 1, 4, 1, 5]]):
        canvases = []
        for one in (session, reference):
            task = make_canvas(prompts, settings.gen_length, bundle.model)
            canvases.append(generate(one, bundle.model, settings, *task).canvas.tolist())
        assert canvases[0] == canvases[1]


def test_profiles_have_their_own_buffers_made_once(trt: TensorrtStandIn, llada: Lowered) -> None:
    (kind,) = (k for k in llada.kinds if k.name == "cached")
    session = opened(llada.bundle, kind, cuda_graphs=False)
    counts = []
    for length in (8, 17, 18, 60, 8):  # the first two and the last in the profile of a block
        forward(session, kind, 0, length=length)
        gc.collect()
        counts.append(len(trt.cuda.pinned))
    assert counts[0] == counts[1] < counts[2] == counts[3] == counts[4]
    assert not trt.cuda.captures
    assert len(trt.contexts) == 2


def test_a_recording_that_fails_is_said_once(
    trt: TensorrtStandIn, llada: Lowered, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = llada.kinds[0]
    trt.cuda.refuses_capture = True
    session, reference = opened(llada.bundle, kind), llada.session(kind)
    for seed in range(4):
        assert_equal(forward(session, kind, seed), forward(reference, kind, seed))
    assert capsys.readouterr().err.count("no CUDA graphs (cudaStreamBeginCapture: capture)") == 1
    assert not trt.cuda.captures


@pytest.mark.parametrize("on", [True, False])
def test_tensorrt_for_rtx_makes_its_graphs_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on: bool
) -> None:
    """Its contexts share the kernels that they compile, and nothing is recorded from outside."""
    lowered = lower(golden("llada"), "fp32", tmp_path, rules=GraphRules(capacity=CANVAS))
    write_manifest(lowered.bundle)
    write_engines(lowered.bundle.folder, lowered.kinds, SETTINGS, CANVAS, 2)
    trt = install(monkeypatch, CudaStandIn())
    (kind,) = (kind for kind in lowered.kinds if kind.name == "cached")
    session, reference = opened(lowered.bundle, kind, on), lowered.session(kind)
    for length in (8, 40, 8, 8):
        found = forward(session, kind, length, length=length)
        assert_equal(found, forward(reference, kind, length, length=length))
    assert not trt.cuda.captures
    assert len(trt.configs) == 2  # one a profile
    assert len({id(config.cache) for config in trt.configs}) == 1 and trt.configs[0].cache
    wanted_strategy = GraphStrategy.WHOLE_GRAPH_CAPTURE if on else GraphStrategy.DISABLED
    assert {config.cuda_graph_strategy for config in trt.configs} == {wanted_strategy}


def test_shapes_beyond_the_profiles_are_refused(trt: TensorrtStandIn, llada: Lowered) -> None:
    kind = llada.kinds[0]
    session = opened(llada.bundle, kind)
    ids = np.zeros((3, 24), np.int64)
    with pytest.raises(UserError, match=r"no input_ids 3×24.*end at input_ids 2×64"):
        forward(session, kind, 0, ids=ids, key_mask=ids == 0)
    with pytest.raises(UserError, match="every token"):
        session.restrict(np.ones(8, np.bool_))


def test_too_little_memory_is_said_in_numbers(
    monkeypatch: pytest.MonkeyPatch, llada: Lowered
) -> None:
    trt = install(monkeypatch, CudaStandIn(memory=1 << 15), "tensorrt")
    (kind,) = (k for k in llada.kinds if k.name == "cached")
    session = opened(llada.bundle, kind)
    with pytest.raises(UserError, match=r"MiB of GPU memory cannot be had .*: 0 of 0 MiB are free"):
        session.new_cache(2, 60)
    assert len(trt.contexts) == 0


def test_layers_are_reported(trt: TensorrtStandIn, llada: Lowered) -> None:
    kind, seen = llada.kinds[0], []
    session = opened(llada.bundle, kind)
    forward(session, kind, 0)
    session.watch_layers(lambda name, ms: seen.append((name, ms)))
    for length in (24, CANVAS):
        forward(session, kind, 0, length=length)
    assert seen == [("everything", 1.5)] * 2


def test_the_command_runs_the_engine_and_says_so(
    trt: TensorrtStandIn, llada: Lowered, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for provider in ("tensorrt", "cpu", None):
        argv = ["--ids", "5,7,9", "--ids", "4,4", "--json", "--steps", "8"]
        argv += ["--provider", provider] if provider else []
        assert main(llada.bundle.folder, argv) == 0
        out, err = capsys.readouterr()
        lines.append([json.loads(line) for line in out.splitlines()])
        assert not err
    engine, cpu, chosen = lines
    for mine, other in zip(engine, cpu, strict=True):
        assert mine["ids"] == other["ids"]
        assert mine["trace"] == other["trace"]
        assert mine["runs_on"] == {
            "provider": "tensorrt", "runtime": "tensorrt", "version": "9.9.9",
            "file": "engines/full.plan",
        }  # fmt: skip
        assert (other["runs_on"]["provider"], other["runs_on"]["runtime"]) == ("cpu", "onnxruntime")
    assert chosen[0]["runs_on"] == engine[0]["runs_on"]
    assert main(llada.bundle.folder, ["--ids", "5,7,9", "--stats", "--steps", "8"]) == 0
    assert "runs on          tensorrt 9.9.9, engines/full.plan" in capsys.readouterr().err


def test_an_engine_that_is_no_engine_is_refused_with_its_reason(
    trt: TensorrtStandIn, llada: Lowered, tmp_path: Path
) -> None:
    kind = llada.kinds[0]
    file = llada.bundle.folder / "engines" / "full.plan"
    good = file.read_bytes()
    file.write_bytes(b"x" * len(good))
    try:
        with pytest.raises(UserError, match=r"full\.plan cannot be loaded: Magic tag"):
            opened(llada.bundle, kind)
    finally:
        file.write_bytes(good)


@pytest.mark.trt
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Engine, "ICudaEngine"),
        (Context, "IExecutionContext"),
        (RuntimeConfig, "IRuntimeConfig"),
        (Registry, "IPluginRegistry"),
        (Profiler, "IProfiler"),
    ],
)
def test_the_stand_in_has_no_method_that_tensorrt_has_not(mine: type, theirs: str) -> None:
    real = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")
    assert {n for n in vars(mine) if n[0] != "_"} - {"strategy", "cache"} <= {
        *dir(getattr(real, theirs))
    }
    for name in ("IRuntimeCache", "CudaGraphStrategy", "TensorIOMode", "ILogger", "Runtime"):
        assert hasattr(real, name)
