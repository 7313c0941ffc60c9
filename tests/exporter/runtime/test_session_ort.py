"""ONNX Runtime behind the `Session` protocol: same numbers as numpy, and the errors of set-up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.runtime.bundle import Bundle, read_bundle
from exporter.runtime.candidates import wanted
from exporter.runtime.errors import UserError
from exporter.runtime.loop import generate
from exporter.runtime.session_ort import choose_graph, open_session
from exporter.runtime.settings import BLOCK_SAMPLERS, CANVAS_SAMPLERS, Settings
from exporter.runtime.task import make_canvas
from tests.tiny_bundle import DECODE, EOS, FACTS, MASK, SAMPLE, TOP, Twin, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    write_bundle(folder)
    return read_bundle(folder)


@pytest.mark.parametrize("cfg_scale", [None, 1.5])
def test_reductions_equal_numpy(bundle: Bundle, cfg_scale: float | None) -> None:
    guided = cfg_scale is not None
    names = frozenset({"id1", "l1", "rest"} if guided else SAMPLE)
    ids, _, key_mask = make_canvas([[1, 2, 3, 4], [5]], 6, FACTS)
    if guided:
        ids, key_mask = np.concatenate([ids, ids * 0 + MASK]), np.concatenate([key_mask] * 2)
    window, bias = np.asarray([1, 4, 7]), np.asarray([[1, -1], [-2, 3]], np.float32)
    session = open_session(bundle, guided, names)
    got = session.forward(ids, key_mask, window, bias, cfg_scale, 0.7, names)
    want = Twin().forward(ids, key_mask, window, bias, cfg_scale, 0.7, names)
    assert got.keys() == names
    assert np.array_equal(got["id1"], want["id1"])
    # logits are sums of 8 fp32 products of size up to |l|; odds multiply that error by themselves
    logits = np.abs(want["topk_logits"]).max() * 32 * np.finfo(np.float32).eps
    for name in names - {"id1", "topk_ids", "topk_logits"}:
        scale = np.maximum(np.abs(want[name]), 1) if "rest" in name else 1
        tolerance = logits / 0.7 * (np.log(FACTS.vocab_size) + 1) * 2
        assert (np.abs(got[name] - want[name]) <= tolerance * scale).all(), name
    if not guided:
        assert np.abs(got["topk_logits"] - want["topk_logits"][..., :TOP]).max() <= logits


RUNS = [
    (sampler, temperature)
    for sampler in BLOCK_SAMPLERS + CANVAS_SAMPLERS
    for temperature in (0.0, 0.5)
    # the tiny bundle has no graph with a shadow; credit makes no draws
    if sampler != "wino" and (sampler, temperature) != ("credit", 0.5)
]


@pytest.mark.parametrize(("sampler", "temperature"), RUNS)
def test_decoding_equals_numpy(bundle: Bundle, sampler: str, temperature: float) -> None:
    settings = replace(DECODE, sampler=sampler, temperature=temperature, top_k=TOP, steps=8)
    session = open_session(bundle, False, wanted(settings))
    canvases = []
    for model in (session, Twin()):
        task = make_canvas([[1, 2, 3], [7, 9]], settings.gen_length, FACTS)
        result = generate(model, FACTS, settings, *task)
        assert result.inexact_draws == 0 or sampler == "credit"  # tokens may leave the best K
        canvases.append(result.canvas.tolist())
    assert canvases[0] == canvases[1]


def test_guided_decoding_equals_numpy(bundle: Bundle) -> None:
    settings = replace(DECODE, cfg_scale=1.0, eos_inf=True)
    session = open_session(bundle, True, wanted(settings))
    canvases = []
    for model in (session, Twin()):
        task = make_canvas([[1, 2, 3]], settings.gen_length, FACTS)
        canvases.append(generate(model, FACTS, settings, *task).canvas.tolist())
    assert canvases[0] == canvases[1]
    assert EOS not in canvases[0][0]


def test_the_smallest_graph_that_can_answer_is_taken(bundle: Bundle) -> None:
    def name(settings: Settings) -> str:
        return choose_graph(bundle, settings.cfg_scale > 0, wanted(settings)).name

    assert name(DECODE) == "full"
    assert name(replace(DECODE, cfg_scale=0.5)) == "full-guided"
    assert name(replace(DECODE, sampler="entropy")) == "sample"
    assert name(replace(DECODE, temperature=0.5)) == "sample"
    with pytest.raises(UserError, match=r"no guided graph with the outputs entropy, id1, rest"):
        name(replace(DECODE, sampler="entropy", cfg_scale=0.5))


def test_setup_errors_say_what_is_there(bundle: Bundle, tmp_path: Path) -> None:
    names = frozenset({"id1"})
    with pytest.raises(UserError, match=r"full\.onnx is missing"):
        open_session(replace(bundle, folder=tmp_path), False, names)
    with pytest.raises(UserError, match=r"no provider quantum; it has .*CPUExecutionProvider"):
        open_session(bundle, False, names, provider="quantum")
    session = open_session(bundle, False, names, provider="cpu", threads=1, accuracy_level=4)
    with pytest.raises(UserError, match="predict every token"):
        session.restrict(np.ones(FACTS.vocab_size, bool))
