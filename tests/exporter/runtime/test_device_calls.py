"""Buffers that stay on a device, against sessions that are fed from the host.

The device is the CPU here: what differs on a GPU is where memory lies, not who makes and keeps it.
"""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from exporter.runtime.device_calls import RECORDINGS, DeviceCalls
from exporter.runtime.feeds import lengthened
from exporter.runtime.loop import generate
from exporter.runtime.ort_setup import recordable
from exporter.runtime.session import Session
from exporter.runtime.session_ort import OrtSession
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from tests.fixtures_lower import Lowered, golden, lower

SETTINGS = Settings(gen_length=16, block_length=8, steps=8)


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return lower(golden("llada"), "fp32", tmp_path_factory.mktemp("device"))


def on_device(lowered: Lowered, name: str, record: bool = False) -> tuple[OrtSession, DeviceCalls]:
    (kind,) = (kind for kind in lowered.kinds if kind.name == name)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(lowered.graph(kind), options)
    calls = DeviceCalls(session, "cpu", record)
    return OrtSession(session, kind.name, calls=calls), calls


DECODES = (
    ("full", "low-confidence", "none", 0.0), ("full-sample", "entropy", "none", 0.5),
    ("cached", "low-confidence", "prefix", 0.0), ("cached-sample", "threshold", "dual", 0.5),
    ("full-guided", "low-confidence", "none", 0.0), ("full-shadow", "wino", "none", 0.0),
)  # fmt: skip


@pytest.mark.parametrize(("graph", "sampler", "cache", "temperature"), DECODES)
def test_whole_decodes_are_equal(
    llada: Lowered, graph: str, sampler: str, cache: str, temperature: float
) -> None:
    settings = replace(
        SETTINGS, sampler=sampler, cache=cache, temperature=temperature, threshold=0.3,
        cfg_scale=0.5 if "guided" in graph else 0.0,
    )  # fmt: skip
    session, calls = on_device(llada, graph, record=True)
    reference = llada.session(next(kind for kind in llada.kinds if kind.name == graph))
    for prompts in ([[5, 7, 9], [1, 2, 3, 4, 6]], [[8, 8, 8], [3, 1, 4, 1, 5]]):
        canvases = []
        for one in (session, reference):
            task = make_canvas(prompts, settings.gen_length, llada.bundle.model)
            canvases.append(generate(one, llada.bundle.model, settings, *task).canvas.tolist())
            gc.collect()  # so that the second decode gets the cache of the first
        assert canvases[0] == canvases[1]
    assert calls.recordings


def forward(session: Session, length: int, seed: int) -> dict[str, Any]:
    ids = np.random.default_rng(seed).integers(0, 190, (1, length))
    bias = np.zeros((2, 1), np.float32)
    wanted = frozenset({"id1", "rest"})
    return session.forward(ids, ids >= 0, np.arange(1, 6), bias, None, None, wanted)


def test_calls_are_recorded_when_they_come_again_and_only_so_many(llada: Lowered) -> None:
    session, calls = on_device(llada, "full", record=True)
    plain, never = on_device(llada, "full")
    for again in range(3):
        for length in range(8, 16):
            found, want = forward(session, length, again), forward(plain, length, again)
            assert all(np.array_equal(found[name], want[name]) for name in want)
        assert calls.recordings == (8 if again else 0)
    assert not never.recordings
    for _ in range(2):
        for length in range(16, 16 + RECORDINGS):
            forward(session, length, 0)
    assert calls.recordings == RECORDINGS


def test_caches_that_are_gone_give_their_memory_to_the_next(llada: Lowered) -> None:
    session, _ = on_device(llada, "cached")

    def addresses(rows: int) -> set[int]:
        cache = session.new_cache(rows, 24)
        return {value.data_ptr() for value in cache.buffers.values()}

    first = addresses(1)
    gc.collect()
    assert addresses(1) == first
    gc.collect()
    assert not addresses(2) & first


def test_a_restriction_holds_on_the_device(llada: Lowered) -> None:
    session, _ = on_device(llada, "full")
    allowed = np.zeros(llada.bundle.model.vocab_size, np.bool_)
    allowed[[17, 23]] = True
    session.restrict(allowed)
    assert set(forward(session, 12, 0)["id1"].flat) <= {17, 23}


def test_a_window_is_lengthened_by_its_last_position() -> None:
    assert lengthened(np.asarray([2, 5, 9])).tolist() == [2, 5, 9, 9, 9, 9, 9, 9]
    assert lengthened(np.asarray([2, 5, 9]), 4).tolist() == [2, 5, 9, 9]
    assert lengthened(np.arange(16), 16).tolist() == [*range(16)]


def test_a_graph_that_cannot_be_recorded_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(record: bool) -> ort.InferenceSession:
        assert record
        return ort.InferenceSession(str(tmp_path / "none.onnx"))

    assert recordable(refuse) is None
    said = capsys.readouterr().err
    assert said.startswith("no CUDA graphs (") and "none.onnx" in said and said.count("\n") == 1
