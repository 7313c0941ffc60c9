"""The loop replays what the upstream loops did, call by call and token by token.

Families without a cache run on an oracle in float64 numpy, everything on the float model: their
fp32 noise is far below the gaps that the traces were chosen to have.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.checkpoint import open_checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.float_session import FloatModel, FloatSession
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.loop import Result, Step, decode
from exporter.runtime.session import Bools, Ints, Session
from exporter.runtime.settings import Settings
from exporter.runtime.task import make_canvas
from tests.numpy_model import NumpyModel, NumpySession, load_numpy_model

GOLDEN = Path(__file__).parents[2] / "golden"
SAMPLERS = {
    "llada_low_confidence": "low-confidence",
    "fastdllm_quota": "low-confidence",
    "fastdllm_threshold": "threshold",
    "fastdllm_factor": "factor",
    "dream_maskgit_plus": "maskgit-plus",
    "dream_topk_margin": "topk-margin",
    "dream_entropy": "entropy",
    "sdar_static": "sdar-static",
    "sdar_dynamic": "sdar-dynamic",
    "sdar_sequential": "sdar-sequential",
    "llada2_threshold": "llada2-threshold",
    "llada21_edit": "llada2-edit",
}
CAUSAL = ("sdar", "llada2")
MASKS = {"llada2": 206, "lladamoe": 211}  # that the configurations do not carry


def cases(kind: str, *families: str) -> list[Any]:
    found = []
    for family in families:
        for case in json.loads((GOLDEN / family / "cases.json").read_text()):
            if case["kind"] == kind:
                found.append(pytest.param(family, case, id=f"{family}-{case['id']}"))
    return found


@cache
def oracle(family: str) -> NumpyModel:
    return load_numpy_model(GOLDEN / family, eot_id=197 if family == "llada" else None)


@cache
def float_session(family: str, block_length: int | None) -> tuple[FloatSession, ModelFacts]:
    eot = {"llada": 197}.get(family)
    checkpoint = open_checkpoint(GOLDEN / family, MASKS.get(family), eot)
    spec = replace(checkpoint.spec, block_length=block_length)
    checkpoint = replace(checkpoint, spec=spec)
    model = FloatModel(checkpoint)
    facts = loop_facts(describe_model(checkpoint, "", checkpoint.spec.vocab_size, 512))
    return FloatSession(model, facts.vocab_size), facts


def settings_of(case: dict[str, Any]) -> Settings:
    params = case["params"]
    sampler = SAMPLERS[case["algorithm"]]
    stops = params.get("stop_ids") is not None or sampler == "llada2-threshold"
    return Settings(
        sampler=sampler,
        cache=params.get("cache", "none"),
        gen_length=params["gen_length"],
        steps=params.get("steps"),
        block_length=params.get("block_length", 32),
        threshold=params.get("threshold"),
        factor=params.get("factor") or 1.0,
        cfg_scale=params.get("cfg_scale", 0.0),
        eps=params.get("eps", 1e-3),
        eos_inf=params.get("logits_eos_inf", False),
        confidence_eos_inf=params.get("confidence_eos_eot_inf", False),
        editing_threshold=params.get("editing_threshold", 0.9),
        max_post_steps=params.get("max_post_steps", 16),
        num_to_transfer=params.get("num_to_transfer", 1),
        minimal_topk=params.get("minimal_topk", 1),
        early_stop=params.get("eos_early_stop", False) or stops,
        eos_early_stop=params.get("eos_early_stop", False),
    )


def start_of(case: dict[str, Any], settings: Settings, model: ModelFacts) -> Any:
    """Canvas, prompt length and key mask."""
    prompt = np.asarray(case["prompt"])
    if case["attention_mask"] is None:
        return make_canvas(prompt.tolist(), settings.gen_length, model)
    kept = [row[keep].tolist() for row, keep in zip(prompt, _mask(case, prompt), strict=True)]
    canvas, length, key_mask = make_canvas(kept, settings.gen_length, model)
    canvas[:, :length] = prompt  # what upstream has under the padding
    return canvas, length, key_mask


def _mask(case: dict[str, Any], prompt: Ints) -> Bools:
    return np.asarray(case["attention_mask"], bool)[:, : prompt.shape[1]]


def replay(
    session: Session, model: ModelFacts, case: dict[str, Any], settings: Settings
) -> tuple[Ints, list[Step], Result]:
    canvas, length, key_mask = start_of(case, settings, model)
    result = Result(canvas)
    steps = list(decode(session, model, settings, canvas, length, key_mask, result))
    return canvas, steps, result


def check(case: dict[str, Any], model: ModelFacts, canvas: Ints, steps: list[Step]) -> None:
    """Equal tokens, and equal commits and edits in each call that upstream made."""
    expected = case["expected"]
    want = np.asarray(expected["canvas"])
    never = want == model.mask_id  # behind the end, where early stop leaves end-of-text tokens
    assert np.array_equal(canvas[~never], want[~never])
    assert (canvas[never] == model.eos_id).all()
    revises = case["algorithm"] == "llada21_edit"  # its last look at a block is a real call
    useful = [s for s in expected["steps"] if revises or s["commits"]]
    assert [step.index for step in steps] == [step["forward"] for step in useful]
    for step, upstream in zip(steps, useful, strict=True):
        assert step.commits == sorted(map(tuple, upstream["commits"]))
        assert sorted(step.edits) == sorted(map(tuple, upstream.get("edits") or []))


def check_counts(case: dict[str, Any], result: Result) -> None:
    expected = case["expected"]
    revises = case["algorithm"] == "llada21_edit"
    assert result.forwards == expected["forwards" if revises else "useful_forwards"]
    assert result.forwards + result.skipped == expected["forwards"]
    assert result.nans == result.inexact_draws == 0


@pytest.mark.parametrize(("family", "case"), cases("logits", "llada", "dream"))
def test_numpy_model_equals_upstream_logits(family: str, case: dict[str, Any]) -> None:
    ids = np.asarray(case["input_ids"])
    mask = np.ones(ids.shape, bool)
    if case["attention_mask"] is not None:
        mask = np.asarray(case["attention_mask"], bool)
    got = oracle(family).logits(ids, mask)
    want = np.load(GOLDEN / family / "logits.npz")[case["expected"]["array"]]
    assert np.abs(got - want)[mask].max() < 2e-4  # fp32 upstream against float64, golden README


@pytest.mark.parametrize(("family", "case"), cases("decode", "llada", "dream"))
def test_full_attention_decodes_as_upstream(family: str, case: dict[str, Any]) -> None:
    session = NumpySession(oracle(family))
    settings = settings_of(case)
    canvas, steps, result = replay(session, session.facts, case, settings)
    check(case, session.facts, canvas, steps)
    check_counts(case, result)
    assert session.calls == result.forwards
    for step, upstream in zip(
        steps, [s for s in case["expected"]["steps"] if s["commits"]], strict=True
    ):
        assert [step.start, step.stop] == upstream["window"]


@pytest.mark.parametrize(("family", "case"), cases("decode", "lladamoe"))
def test_full_attention_with_experts_decodes_as_upstream(family: str, case: dict[str, Any]) -> None:
    session, facts = float_session(family, None)
    canvas, steps, result = replay(session, facts, case, settings_of(case))
    check(case, facts, canvas, steps)
    check_counts(case, result)


@pytest.mark.parametrize("kept", ["none", "exact"])
@pytest.mark.parametrize(("family", "case"), cases("decode", *CAUSAL))
def test_block_causal_models_decode_as_upstream(
    family: str, case: dict[str, Any], kept: str
) -> None:
    session, facts = float_session(family, case["params"]["block_length"])
    params = case["params"]
    stops = [i for i in params.get("stop_ids") or [] if i != params["eos_id"]]
    facts = replace(facts, eos_id=params["eos_id"], eot_id=stops[0] if stops else None)
    settings = replace(settings_of(case), cache=kept)
    canvas, steps, result = replay(session, facts, case, settings)
    check(case, facts, canvas, steps)
    check_counts(case, result)
    if "returned" in case["expected"]:
        length = len(case["prompt"][0])
        answer = canvas[0, length : length + settings.gen_length].tolist()
        if facts.eos_id in answer:
            answer = answer[: answer.index(facts.eos_id) + 1]
        assert answer == case["expected"]["returned"]
