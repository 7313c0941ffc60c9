"""Upstream's logits of the golden families that are block-causal or have experts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import UserError
from exporter.float_session import FloatModel
from exporter.graph_kind import GraphKind
from exporter.linear_groups import group_of_each
from tests.fixtures_lower import GOLDEN, TWO_FP32, LogitsCase, golden, logits_cases, lower

FAMILIES = ("sdar", "llada2", "lladamoe")
CASES = [(family, case) for family in FAMILIES for case in logits_cases(family)]


def seen_as(checkpoint: Checkpoint, block_length: int | None) -> Checkpoint:
    """The checkpoint under a block-causal mask of that length, or under none."""
    spec = replace(checkpoint.spec, attention="full", block_length=None)
    if block_length is not None:
        spec = replace(spec, attention="block-causal", block_length=block_length)
    return replace(checkpoint, spec=spec)


@pytest.mark.parametrize(
    ("family", "case"), CASES, ids=[f"{family}-{case.name}" for family, case in CASES]
)
def test_logits_are_those_of_upstream(family: str, case: LogitsCase) -> None:
    model = FloatModel(seen_as(golden(family), case.block_length))
    found = model.logits(torch.from_numpy(case.ids), torch.from_numpy(case.key_mask)).numpy()
    assert np.abs(found - case.logits)[case.key_mask].max() <= TWO_FP32


def test_the_block_length_of_a_configuration_can_be_overruled() -> None:
    assert open_checkpoint(GOLDEN / "sdar").spec.block_length == 4
    assert open_checkpoint(GOLDEN / "sdar", block_length=8).spec.block_length == 8
    with pytest.raises(UserError, match="whose attention is full"):
        open_checkpoint(GOLDEN / "llada", block_length=8)


LOGITS = GraphKind(logits=True)


@pytest.mark.parametrize(
    ("family", "length"), [("sdar", 4), ("sdar", None), ("llada2", 8), ("lladamoe", None)]
)
def test_graphs_give_the_logits_of_upstream(
    family: str, length: int | None, tmp_path: Path
) -> None:
    lowered = lower(seen_as(golden(family), length), "fp32", tmp_path, logits=True)
    onnx.checker.check_model(lowered.graph(LOGITS), full_check=True)
    session = lowered.session(LOGITS)
    bias = np.zeros((2, len(lowered.checkpoint.spec.special_ids)), np.float32)
    for case in logits_cases(family):
        if case.block_length == length:
            window = np.arange(case.ids.shape[1])
            found = session.forward(
                case.ids, case.key_mask, window, bias, None, None, frozenset({"logits"})
            )
            apart = np.abs(found["logits"] - case.logits)[case.key_mask]
            assert apart.max() <= TWO_FP32, case.name


@pytest.mark.parametrize("family", ["llada2", "lladamoe"])
def test_the_linears_of_experts_fuse(family: str, tmp_path: Path) -> None:
    """All of them become MatMulNBits; the router and the head stay products of floats."""
    lowered = lower(golden(family), "w4a16-rtn", tmp_path)
    spec, options = lowered.checkpoint.spec, ort.SessionOptions()
    options.optimized_model_filepath = str(lowered.bundle.folder / "graphs" / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(lowered.graph(GraphKind()), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    linears = sum(len(group_of_each(spec, index)) for index in range(spec.layers))
    head = lowered.recipe.head_bits < 16
    assert kinds["MatMulNBits"] == linears + head
    assert kinds["DequantizeLinear"] == 0
    routers = sum(map(spec.has_experts, range(spec.layers)))
    assert kinds["MatMul"] + kinds["FusedMatMul"] == routers + (not head)


@pytest.mark.parametrize("family", ["llada2", "lladamoe"])
def test_an_expert_computes_its_own_tokens_alone(family: str, tmp_path: Path) -> None:
    """What enters the experts of a block are T · per-token rows together, some none at all."""
    lowered = lower(golden(family), "fp32", tmp_path)
    model = onnx.load(lowered.graph(GraphKind()), load_external_data=False)
    splits = [node for node in model.graph.node if node.op_type == "Split"]
    experts = lowered.checkpoint.spec.experts
    assert experts is not None
    assert [len(node.output) for node in splits] == [experts.count] * sum(experts.blocks)
    for name in splits[-1].output:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    file = lowered.bundle.folder / "graphs" / "runs.onnx"
    onnx.save(model, file)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    ids = np.arange(3)[None]
    feed = {"input_ids": ids, "key_mask": ids >= 0, "window": np.arange(3)}
    if special := len(lowered.checkpoint.spec.special_ids):
        feed["special_bias"] = np.zeros((2, special), np.float32)
    rows = [run.shape[1] for run in session.run(list(splits[-1].output), feed)]
    assert sum(rows) == 3 * experts.per_token
    assert 0 in rows
