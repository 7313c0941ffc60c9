"""Attention of ONNX Runtime's CUDA provider, on the host and on GPUs."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from ort_ops.attention.op import NAME, AttentionTops
from tests.attention_case import AttentionCase, AttentionShape, random_case
from tests.one_node import Device, OneNode

NAMES = ("q", "k", "v", "visible", "common", "v_scale", "v_zero")
TOPS = {"bytes": AttentionTops(), "half bytes": AttentionTops(7, 7, 15, 15)}


def node(case: AttentionCase) -> OneNode:
    tops = {f"{name}_top": top for name, top in asdict(case.tops).items()}
    attributes = {"heads": case.heads, "kv_heads": case.k.shape[1], **tops}
    inputs = dict(zip(NAMES, case.inputs, strict=True))
    return OneNode(NAME, attributes, inputs, {"y": (case.q.dtype, case.q.shape)})


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("tops", TOPS)
@pytest.mark.parametrize("width", [20, 64])
def test_the_operator_is_right(device: Device, half: bool, tops: str, width: int) -> None:
    shape = AttentionShape(rows=2, queries=9, keys=21, heads=4, kv_heads=2, width=width)
    case = random_case(np.random.default_rng(width), shape, TOPS[tops], half)
    (y,) = node(case).run(device)
    least, most, certain = case.bounds()
    assert certain > 0.9
    assert y.dtype == case.q.dtype
    assert ((least <= y) & (y <= most)).all()


def test_values_may_stay_floats(device: Device) -> None:
    shape = AttentionShape(rows=1, queries=5, keys=33, heads=2, kv_heads=2, width=32)
    case = random_case(np.random.default_rng(0), shape, AttentionTops(), half=True)
    case = replace(case, tops=AttentionTops(v=0, p=0))
    (y,) = node(case).run(device)
    least, most, _ = case.bounds()
    assert ((least <= y) & (y <= most)).all()


def test_what_does_not_fit_is_refused(device: Device) -> None:
    shape = AttentionShape(rows=1, queries=2, keys=3, heads=2, kv_heads=1, width=8)
    case = random_case(np.random.default_rng(0), shape, AttentionTops(), half=False)
    with pytest.raises(Exception, match="heads are not a multiple of kv_heads"):
        node(replace(case, k=case.k.repeat(3, 1))).session(device)
    with pytest.raises(Exception, match="common has shape"):
        node(replace(case, common=case.common[:, :2])).run(device)
