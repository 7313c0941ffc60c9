"""Experts: who goes where by the definition, one token at a time, and calibration by expert."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.calibrated_block import Batch, CalibratedBlock, Routed
from exporter.experts import route
from exporter.families import Experts
from exporter.float_session import FloatModel
from exporter.layer import Layer
from exporter.linear_groups import block_groups, expert, expert_number
from exporter.model import make_context, trace_block
from exporter.quant_options import QuantOptions
from exporter.quantize import count_tokens
from exporter.recipes import make_recipe
from exporter.simulate import turned
from passes.activations.static import StaticScales
from passes.base import LEAST_TOKENS, Alone, LinearGroup
from passes.numerics import QuantizedLinear
from passes.transforms.awq import Awq
from passes.transforms.omniquant import OmniQuant
from passes.weights.gptq import Gptq
from passes.weights.rtn import round_to_nearest
from tests.fixtures_lower import golden
from tests.made_up_states import calibration, run_passes


@st.composite
def routers(draw: st.DrawFn) -> Experts:
    groups = draw(st.sampled_from([1, 2, 4]))
    size = draw(st.integers(1, 4))
    top_groups = draw(st.integers(1, groups))
    return Experts(
        blocks=(True,),
        count=groups * size,
        per_token=draw(st.integers(1, top_groups * size)),
        width=8,
        shared_width=0,
        score=draw(st.sampled_from(["softmax", "sigmoid"])),
        selection_bias=draw(st.booleans()),
        groups=groups,
        top_groups=top_groups,
        renormalize=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
    )


def by_hand(experts: Experts, logits: list[float], bias: list[float]) -> dict[int, float]:
    """Expert -> weight of one token, in float64 and plain Python."""
    z = np.asarray(logits, np.float64)
    scores = np.exp(z) / np.exp(z).sum() if experts.score == "softmax" else 1 / (1 + np.exp(-z))
    merit = scores + np.asarray(bias) * experts.selection_bias
    size = experts.count // experts.groups
    parts = [range(n * size, (n + 1) * size) for n in range(experts.groups)]
    worth = [sum(sorted((merit[e] for e in part), reverse=True)[:2]) for part in parts]
    best = sorted(range(experts.groups), key=lambda n: -worth[n])[: experts.top_groups]
    inside = [e for n in best for e in parts[n]]
    chosen = sorted(inside, key=lambda e: -merit[e])[: experts.per_token]
    total = sum(scores[e] for e in chosen) if experts.renormalize else 1.0
    return {e: scores[e] / total * experts.scale for e in chosen}


@settings(deadline=None, max_examples=60)
@given(experts=routers(), seed=st.integers(0, 2**16))
def test_the_router_is_the_one_by_hand(experts: Experts, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    router = torch.randn(experts.count, 6, generator=draw)
    bias = torch.randn(experts.count, generator=draw)
    x = torch.randn(5, 6, generator=draw)
    found = route(experts, {"router": router, "expert_bias": bias}, x)
    assert found.chosen.shape == found.weights.shape == (5, experts.per_token)
    for row, logits in enumerate((x.double() @ router.double().T).tolist()):
        want = by_hand(experts, logits, bias.tolist())
        got = dict(zip(found.chosen[row].tolist(), found.weights[row].tolist(), strict=True))
        assert got.keys() == want.keys()
        # sums of 6 products and of 16 scores, exact to 2^-24 each, times the scale
        assert all(abs(got[e] - want[e]) <= 2.5 * 64 * 2**-24 for e in want)
    shared = [found.tokens(number) for number in range(experts.count)]
    assert sum(len(rows) for rows, _ in shared) == 5 * experts.per_token
    for number, (rows, weights) in enumerate(shared):
        here = found.chosen[rows] == number
        assert torch.equal(found.weights[rows][here], weights[:, 0])


def calibrated(family: str, index: int, recipe_name: str) -> CalibratedBlock:
    """A block of a golden model with experts, behind random states of two lengths."""
    checkpoint = golden(family)
    spec, draw = checkpoint.spec, torch.Generator().manual_seed(0)
    batches = []
    for rows, length in ((2, 12), (1, 20)):
        valid = torch.arange(length)[None] >= torch.arange(rows)[:, None] * 3
        weights = (valid * (0.5 + torch.rand(valid.shape, generator=draw))).flatten()
        hidden = torch.randn(rows, length, spec.width, generator=draw)
        batches.append(Batch(hidden, make_context(spec, valid), weights))
    recipe = make_recipe(recipe_name, spec, QuantOptions(), "fp32")
    groups = tuple(recipe.on_grids(index, group) for group in block_groups(spec, index))
    block = checkpoint.block(index)
    return CalibratedBlock(spec, f"block {index}", block, batches, Alone(), groups)


def rounded(weight: torch.Tensor, group: LinearGroup) -> QuantizedLinear:
    assert group.grid is not None
    return round_to_nearest(weight, group.grid)


@pytest.mark.parametrize(("family", "index"), [("llada2", 1), ("lladamoe", 0)])
def test_an_expert_sees_its_own_tokens_with_their_weights(family: str, index: int) -> None:
    """Against the block as it runs; also after something before the experts has changed."""
    block = calibrated(family, index, "w4a16-gptq")
    assert block.spec.experts is not None
    for change in (1.0, 0.5):
        block.set("o", block.weight("o") * change)
        traced = [
            dict(trace_block(block.spec, block.layer, batch.hidden, batch.context))
            for batch in block.batches
        ]
        for group in block.groups:
            inputs = list(block.inputs(group))
            assert block.tokens(group) == sum(int((w != 0).sum()) for _, w in inputs)
            for (x, weights), steps in zip(inputs, traced, strict=True):
                assert torch.equal(x, steps[group.name].reshape(-1, x.shape[-1]))
                assert len(weights) == len(x)
        assert block.routed is not None
        pairs = list(zip(block.batches, block.routed, strict=True))
        for number in range(block.spec.experts.count):
            shown = block.inputs(expert(number)[0])
            for (batch, routed), (x, weights) in zip(pairs, shown, strict=True):
                places = [int((routed.x == row).all(1).nonzero()) for row in x]
                assert torch.equal(weights, batch.weights[places])


def test_what_the_experts_read_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    block, calls = calibrated("lladamoe", 0, "w4a16-gptq"), list[Batch]()
    before = block._route

    def counted(layer: Layer, batch: Batch) -> Routed:
        calls.append(batch)
        return before(layer, batch)

    monkeypatch.setattr(block, "_route", counted)
    for group in block.groups:
        list(block.inputs(group))
        for linear in group.linears:
            block.replace(linear, rounded(block.weight(linear), group))
    assert len(calls) == len(block.batches)


def starve(block: CalibratedBlock, left: int) -> None:
    """Let the router lead hardly a token to expert 0: `left` of them weigh anything."""
    (rows, _), *_ = [r.routing.tokens(0) for r in block._routed()]
    block.batches[0].weights[rows[left:]] = 0
    block.batches[1].weights[block._routed()[1].routing.tokens(0)[0]] = 0


@pytest.mark.parametrize("left", [0, 2])
def test_an_expert_without_tokens_is_rounded_to_nearest(
    left: int, caplog: pytest.LogCaptureFixture
) -> None:
    block = calibrated("lladamoe", 0, "w4a16-gptq")
    starve(block, left)
    assert block.tokens(expert(0)[0]) == left
    floats = dict(block.tensors)
    Awq(ratios=2)(block)
    assert all(torch.equal(block.tensors[n], floats[n]) for n in ("gate_0", "up_0", "down_0"))
    stats = Gptq()(block)
    assert stats["unseen"] >= 2
    for group in block.groups:
        for name in group.linears if expert_number(group) == 0 else ():
            plain = rounded(floats[name], group)
            assert torch.equal(block.replaced[name].codes, plain.codes)
    with caplog.at_level(logging.WARNING):
        counts = count_tokens(block)
    assert counts["expert_tokens_least"] < LEAST_TOKENS  # quantized attention moves a few tokens
    assert counts["experts_unseen"] >= 1
    assert "fewer than 8 calibration tokens" in caplog.text


def test_other_passes_leave_an_expert_without_tokens_defined() -> None:
    block = calibrated("lladamoe", 0, "w8a8-rtn+tensor")
    starve(block, 0)
    stats = StaticScales()(block)
    assert stats["unseen"] >= 2
    grids = {name: grid.granularity for name, grid in block.activations.items()}
    assert grids["expert 0 input"] == grids["expert 0 output"] == "token"
    assert grids["attention input"] == "tensor"
    OmniQuant(steps=1)(block)
    plain = rounded(golden("lladamoe").tensor("down_0", 0), block.groups[-1])
    assert torch.equal(block.replaced["down_0"].codes, plain.codes)


def test_the_router_stays_as_it_is(tmp_path: Path) -> None:
    checkpoint = golden("llada2")
    recipe = make_recipe("w4a16-rtn", checkpoint.spec, QuantOptions(), "fp16")
    quantized = run_passes(checkpoint, recipe, tmp_path)
    assert quantized is not None
    block, plain = quantized.block(1), checkpoint.block(1)
    for name in ("router", "expert_bias"):
        assert torch.equal(block.floats[name], plain[name])
    assert not {"router"} & block.linears.keys()


def test_tokens_of_experts_are_on_record(tmp_path: Path) -> None:
    checkpoint = golden("llada2")
    recipe = make_recipe("w4a16-gptq", checkpoint.spec, QuantOptions(), "fp32")
    quantized = run_passes(checkpoint, recipe, tmp_path)
    assert quantized is not None
    dense, routed = quantized.passes(0)[-1]["stats"], quantized.passes(1)[-1]["stats"]
    assert "expert_tokens_mean" not in dense
    tokens = sum(int(s.valid.sum()) for s in calibration(checkpoint).states)
    assert routed["expert_tokens_mean"] == tokens * 2 / 8


def test_rotating_the_stream_keeps_a_model_with_experts() -> None:
    checkpoint = golden("llada2")
    recipe = make_recipe("w4a4-quarot", checkpoint.spec, QuantOptions(), "fp32")
    ids, valid = torch.arange(20)[None], torch.ones(1, 20, dtype=torch.bool)
    plain = FloatModel(checkpoint).logits(ids, valid)
    rotated = FloatModel(turned(checkpoint, recipe)).logits(ids, valid)
    assert (rotated - plain).abs().max() <= 2e-4  # two fp32 evaluations
