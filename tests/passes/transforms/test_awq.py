"""AWQ: never worse than rounding to nearest, equal to the textbook, and the function stays."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from passes.activations.grid import ActivationGrid, fake_quantize
from passes.base import Team
from passes.numerics import WeightGrid
from passes.transforms.awq import Awq, awq_scale, input_statistics, output_errors, weight_errors
from passes.transforms.clip import clip_rows
from passes.transforms.sample import sample_tokens
from passes.weights.rtn import Rtn, round_to_nearest
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock, outputs_of, rounding_bound

GRIDS = [WeightGrid(4, 16), WeightGrid(3), WeightGrid(4, 16, levels=2)]
ACTIVATIONS = [None, ActivationGrid(8), ActivationGrid(4, "group", 8)]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_scales_are_normalized_powers_of_the_mean() -> None:
    mean = torch.tensor([1e-9, 0.5, 40.0])
    assert torch.equal(awq_scale(mean, 0.0), torch.ones(3))
    s = awq_scale(mean, 0.5)
    assert float(s.max() * s.min()) == pytest.approx(1)
    assert float(s[2] / s[1]) == pytest.approx(80**0.5)
    assert float(s[2] / s[0]) == pytest.approx(40**0.5 / 1e-4), "clamped before it is normalized"


def test_statistics_are_weighted_sums_over_tokens() -> None:
    block = ToyBlock(weigh=True, padding=float("nan"))
    group = block.groups[2]
    mean, hessian = input_statistics(block, group)
    x = torch.cat([x[w != 0] for x, w in block.inputs(group)]).double()
    square = torch.cat([w[w != 0] for _, w in block.inputs(group)]).double().square()
    # 150 terms in fp32, each of at most four roundings
    assert torch.allclose(mean.double(), square @ x.abs() / square.sum(), rtol=160 * 2**-24)
    assert torch.allclose(hessian.double(), 2 * x.T @ (x * square[:, None]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_group_is_worse_than_rounding_to_nearest(
    grid: WeightGrid, activation: ActivationGrid | None
) -> None:
    block = ToyBlock(grid=grid, activation=activation, kv_heads=2, biases=True, weigh=True)
    awq = Awq()
    for group in block.groups:
        rtn_error, error, ratio, clipped = awq.improve(block, group, grid)
        assert error <= rtn_error
        assert error == rtn_error or ratio > 0
        assert 0 <= clipped <= 1
    plain = ToyBlock(grid=grid, activation=activation, kv_heads=2, biases=True, weigh=True)
    exact = outputs_of(ToyBlock(kv_heads=2, biases=True, weigh=True))
    Rtn()(block)
    Rtn()(plain)
    after, before = (float((outputs_of(b) - exact).square().sum()) for b in (block, plain))
    assert after < before, "the norms of this block have outlier channels"


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_scaling_leaves_the_function(kv_heads: int) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=True)
    before, bound = outputs_of(block), rounding_bound(block)
    stats = Awq(clip=False)(block)
    assert (outputs_of(block) - before).abs().max() <= bound
    assert stats["ratio"] > 0
    assert stats["clipped"] == 0


def test_float_inputs_give_the_error_of_the_outputs_themselves() -> None:
    """By the Hessian of all tokens as by the outputs of all tokens."""
    block, grid = ToyBlock(weigh=True), WeightGrid(4, 16)
    group = block.groups[3]
    mean, hessian = input_statistics(block, group)
    rows = block.weight("down")
    scales = [awq_scale(mean, ratio) for ratio in (0.0, 0.4, 0.8)]
    by_hessian = weight_errors(rows, hessian, grid, scales, block.team)
    sample = sample_tokens(block, group, 1000)
    exact = ActivationGrid(8, "tensor")  # not calibrated yet: rounds nothing
    by_outputs = output_errors(rows, sample, grid, exact, scales, block.team)
    # sums of 150 and 48 terms in fp32 that are squares, hence positive, but for the Hessian's
    # off-diagonal: some 200 roundings in units of an error of 1 in 100
    assert torch.allclose(by_hessian, by_outputs, rtol=200 * 2**-24 * 100)


def test_the_choice_is_that_of_the_textbook() -> None:
    """Plain AWQ as its code has it, in fp64, for float inputs and equal tokens."""
    block, grid = ToyBlock(), WeightGrid(4, 16)
    group = block.groups[2]
    x = torch.cat([x[w != 0] for x, w in block.inputs(group)]).double()
    weights = [block.weight(linear).double() for linear in group.linears]
    losses = []
    for i in range(20):
        s = x.abs().mean(0).pow(i / 20).clamp_min(1e-4)
        s = s / (s.max() * s.min()).sqrt()
        loss = 0.0
        for w in weights:
            rounded = round_to_nearest((w * s).float(), grid).dequantize() / s
            loss += float((x @ (w - rounded).T).square().mean())
        losses.append(loss)
    best = min(range(20), key=lambda i: losses[i])
    rtn_error, error, ratio, _ = Awq().improve(block, group, grid)
    assert ratio == best / 20
    # codes that fp32 and fp64 round apart are one in thousands
    assert error / rtn_error == pytest.approx(losses[best] / losses[0], rel=0.02)


def test_clipping_spares_queries_and_keys() -> None:
    scaled, clipped = ToyBlock(grid=WeightGrid(3)), ToyBlock(grid=WeightGrid(3))
    Awq(clip=False).improve(scaled, scaled.groups[0], WeightGrid(3))
    share = Awq().improve(clipped, clipped.groups[0], WeightGrid(3))[3]
    assert torch.equal(clipped.weight("q"), scaled.weight("q"))
    assert torch.equal(clipped.weight("k"), scaled.weight("k"))
    changed = (clipped.weight("v") != scaled.weight("v")).any(1)
    assert 0 < share == float(changed.float().mean())
    everything = ToyBlock(grid=WeightGrid(3))
    Awq(unclipped=()).improve(everything, everything.groups[0], WeightGrid(3))
    assert not torch.equal(everything.weight("q"), scaled.weight("q"))


def test_clipping_looks_at_the_scaled_inputs() -> None:
    scaled, clipped = ToyBlock(weigh=True), ToyBlock(weigh=True)
    group, grid = scaled.groups[3], WeightGrid(3, 16)
    assert Awq(clip=False).improve(scaled, group, grid)[2] > 0
    Awq().improve(clipped, group, grid)
    _, hessian = input_statistics(scaled, group)
    expected = clip_rows(scaled.weight("down"), hessian, grid)
    assert not torch.equal(expected, scaled.weight("down"))
    # the Hessian is scaled here and summed anew there: steps that are nearly equal may swap
    assert (clipped.weight("down") == expected).all(1).float().mean() >= 0.9


def test_groups_that_stay_float_are_left_alone() -> None:
    block, before = ToyBlock(grid=None), ToyBlock(grid=None)
    assert Awq()(block)["groups"] == 0
    assert same(block.tensors, before.tensors)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_padding_never_matters_and_answers_repeat(activation: ActivationGrid | None) -> None:
    blocks = [ToyBlock(activation=activation, padding=p) for p in (0.0, 0.0, float("nan"))]
    stats = [Awq(max_tokens=40)(block) for block in blocks]
    assert stats[0] == stats[1] == stats[2]
    assert all(same(block.tensors, blocks[0].tensors) for block in blocks)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_team_decides_as_one(activation: ActivationGrid | None) -> None:
    def improved(team: Team) -> tuple[dict[str, Tensor], dict[str, float]]:
        block = ToyBlock(activation=activation, team=team)
        return block.tensors, Awq()(block)

    (first, stats), (second, others) = run_as_team(2, improved)
    assert stats == others
    assert same(first, second)
    alone = Awq()(ToyBlock(activation=activation))
    # sums in another order: 150 terms, and codes at a boundary that fall to its other side
    assert stats["rtn_error"] == pytest.approx(alone["rtn_error"], rel=0.01)


def test_scales_without_a_source_are_not_tried() -> None:
    block = ToyBlock()
    group = replace(block.groups[2], source="")
    rtn_error, error, ratio, clipped = Awq().improve(block, group, WeightGrid(4, 16))
    assert (error, ratio) == (rtn_error, 0)
    assert clipped > 0
    assert torch.equal(block.tensors["mlp_norm"], ToyBlock().tensors["mlp_norm"])


def test_rounded_inputs_count_in_the_error() -> None:
    block, grid, activation = ToyBlock(weigh=True), WeightGrid(8, 16), ActivationGrid(3)
    group = block.groups[0]
    x, w = sample_tokens(block, group, 1000)
    rows, one = block.weight("q"), torch.ones(40)
    found = output_errors(rows, (x, w), grid, activation, [one], block.team)
    rounded = fake_quantize(x, activation) @ round_to_nearest(rows, grid).dequantize().T
    exact = x @ rows.T
    expected = (w[:, None] * (exact - rounded)).square().sum() / (w[:, None] * exact).square().sum()
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Awq(ratios=0)
    with pytest.raises(ValueError, match="must be positive"):
        Awq(max_tokens=0)
