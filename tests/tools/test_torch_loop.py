"""The yardstick of the bench decodes as the upstream loop does, token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from exporter.checkpoint import open_checkpoint
from tools.torch_loop import decode, load

GOLDEN = Path(__file__).parents[1] / "golden" / "llada"


def cases() -> list[Any]:
    """Upstream's decodings without guidance, end-of-text switches and padding."""
    found = json.loads((GOLDEN / "cases.json").read_text())
    switches = ("cfg_scale", "logits_eos_inf", "confidence_eos_eot_inf")
    return [
        pytest.param(case, id=case["id"])
        for case in found
        if case.get("algorithm") == "llada_low_confidence"
        and not any(case["params"][name] for name in switches)
        and case["attention_mask"] is None
    ]


@pytest.mark.parametrize("case", cases())
def test_whole_decoding_is_that_of_upstream(case: dict[str, Any]) -> None:
    how, model = case["params"], load(open_checkpoint(GOLDEN), torch.float32)
    sizes = how["gen_length"], how["block_length"], how["steps"]
    for prompt, canvas in zip(case["prompt"], case["expected"]["canvas"], strict=True):
        assert decode(model, prompt, *sizes, how["steps"])[0].tolist() == canvas


def test_first_calls_are_those_of_the_whole() -> None:
    case = cases()[0].values[0]
    how, model = case["params"], load(open_checkpoint(GOLDEN), torch.float32)
    canvas = case["prompt"][0] + [how["mask_id"]] * how["gen_length"]
    for call in case["expected"]["steps"][:3]:
        for _, position, token in call["commits"]:
            canvas[position] = token
    sizes = how["gen_length"], how["block_length"], how["steps"]
    assert decode(model, case["prompt"][0], *sizes, calls=3)[0].tolist() == canvas
