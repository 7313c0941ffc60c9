"""The loop replays what the upstream loops did, token by token, over an independent float model."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.runtime.loop import Result, decode
from exporter.runtime.settings import Settings
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
}


def cases(kind: str) -> list[Any]:
    found = []
    for family in ("llada", "dream"):
        for case in json.loads((GOLDEN / family / "cases.json").read_text()):
            uncached = case.get("params", {}).get("cache", "none") == "none"
            if case["kind"] == kind and uncached:
                found.append(pytest.param(family, case, id=f"{family}-{case['id']}"))
    return found


@cache
def model_of(family: str) -> NumpyModel:
    return load_numpy_model(GOLDEN / family, eot_id=197 if family == "llada" else None)


def settings_of(case: dict[str, Any]) -> Settings:
    params = case["params"]
    return Settings(
        sampler=SAMPLERS[case["algorithm"]],
        gen_length=params["gen_length"],
        steps=params["steps"],
        block_length=params.get("block_length", 32),
        threshold=params.get("threshold") or 0.9,
        factor=params.get("factor") or 1.0,
        cfg_scale=params.get("cfg_scale", 0.0),
        eps=params.get("eps", 1e-3),
        eos_inf=params.get("logits_eos_inf", False),
        confidence_eos_inf=params.get("confidence_eos_eot_inf", False),
        early_stop=False,
    )


@pytest.mark.parametrize(("family", "case"), cases("logits"))
def test_numpy_model_equals_upstream_logits(family: str, case: dict[str, Any]) -> None:
    ids = np.asarray(case["input_ids"])
    mask = np.ones(ids.shape, bool)
    if case["attention_mask"] is not None:
        mask = np.asarray(case["attention_mask"], bool)
    got = model_of(family).logits(ids, mask)
    want = np.load(GOLDEN / family / "logits.npz")[case["expected"]["array"]]
    assert np.abs(got - want)[mask].max() < 2e-4  # fp32 upstream against float64, golden README


@pytest.mark.parametrize(("family", "case"), cases("decode"))
def test_decoding_equals_upstream(family: str, case: dict[str, Any]) -> None:
    settings, expected = settings_of(case), case["expected"]
    prompt = np.asarray(case["prompt"])
    session = NumpySession(model_of(family))
    masks = np.full((len(prompt), settings.gen_length), session.facts.mask_id)
    canvas = np.concatenate([prompt, masks], 1)
    key_mask = np.ones(canvas.shape, bool)
    if case["attention_mask"] is not None:
        key_mask[:, : prompt.shape[1]] = case["attention_mask"]
    result = Result(canvas)
    steps = list(
        decode(session, session.facts, settings, canvas, prompt.shape[1], key_mask, result)
    )
    assert canvas.tolist() == expected["canvas"]
    useful = [step for step in expected["steps"] if step["commits"]]
    assert [step.index for step in steps] == [step["forward"] for step in useful]
    for step, want in zip(steps, useful, strict=True):
        assert step.commits == sorted(map(tuple, want["commits"]))
    assert result.forwards == expected["useful_forwards"] == session.calls
    assert result.forwards + result.skipped == expected["forwards"]
    assert result.nans == result.inexact_draws == 0
