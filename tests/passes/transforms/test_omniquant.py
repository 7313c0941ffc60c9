"""OmniQuant: never worse than its start, exact forwards, usable under any gradient mode."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid
from passes.activations.ia_aq import IaAq
from passes.base import Team
from passes.numerics import QuantizedLinear, WeightGrid
from passes.transforms.omniquant import OmniQuant, OmniScale, clipped, fake_clipped, passed_through
from passes.transforms.smooth import SmoothQuant
from passes.weights.rtn import Rtn, round_to_nearest
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock, outputs_of

GRIDS = [WeightGrid(4, 16), WeightGrid(3), WeightGrid(4, 16, levels=2), WeightGrid(3, 7, clip=True)]
QUICK = OmniQuant(steps=8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(
    omniquant: OmniQuant = QUICK,
    padding: float = 0.0,
    activation: ActivationGrid | None = None,
    team: Team | None = None,
) -> tuple[ToyBlock, dict[str, float]]:
    block = ToyBlock(padding=padding, activation=activation, kv_heads=2, biases=True, team=team)
    return block, omniquant(block)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("activation", [None, ActivationGrid(4)])
def test_no_group_is_worse_than_its_start(
    grid: WeightGrid, activation: ActivationGrid | None
) -> None:
    block = ToyBlock(grid=grid, activation=activation, kv_heads=2, biases=True, weigh=True)
    covering = replace(grid, clip=False)  # what learning starts from
    plain = ToyBlock(grid=covering, activation=activation, kv_heads=2, biases=True, weigh=True)
    exact = outputs_of(ToyBlock(kv_heads=2, biases=True, weigh=True))
    for group in block.groups:
        learned = QUICK.learn(block, group, grid, scale=True)
        assert learned.error <= learned.rtn_error
        assert ((learned.kept > 0) & (learned.kept <= 1)).all()
    OmniScale(QUICK)(block)
    stats = QUICK(block)
    assert stats["error"] < stats["rtn_error"]
    Rtn()(plain)
    after, before = (float((outputs_of(b) - exact).square().sum()) for b in (block, plain))
    assert after < before


@pytest.mark.parametrize("grid", GRIDS)
def test_every_linear_ends_on_its_grid(grid: WeightGrid) -> None:
    block = ToyBlock(grid=grid)
    QUICK(block)
    assert set(block.replaced) == {name for group in block.groups for name in group.linears}
    for name, linear in block.replaced.items():
        assert (linear.bits, linear.group) == (grid.bits, grid.columns(block.weight(name).shape[1]))
        assert (linear.channel is None) == (grid.levels == 1)


def test_the_error_is_that_of_the_weights_that_are_kept() -> None:
    """On all tokens: what the stats say is what the block then computes."""
    block, plain = ToyBlock(weigh=True), ToyBlock(weigh=True)
    group = block.groups[2]
    learned = OmniQuant(steps=10, max_tokens=1000).quantize(block, group, GRIDS[0])
    w = torch.cat([w[w != 0] for _, w in plain.inputs(group)])[:, None]
    exact, found = (
        torch.cat([x[w != 0] for x, w in b.inputs(group)])
        @ torch.cat([b.weight(name) for name in group.linears]).T
        for b in (plain, block)
    )
    error = (w * (exact - found)).square().sum() / (w * exact).square().sum()
    # 40 products a sum, in an error that is 1 / 15 of the output
    assert learned is not None
    assert learned.error == pytest.approx(float(error), rel=2 * 45 * 2**-24 * 15)


def test_weights_on_their_grid_are_kept_to_the_bit() -> None:
    """Rounding them to nearest has no error, so nothing can be better."""
    block = ToyBlock()
    draw = torch.Generator().manual_seed(0)
    for group in block.groups:
        for name in group.linears:
            codes = torch.randint(-7, 8, block.weight(name).shape, generator=draw).to(torch.int8)
            codes[:, ::16] = 7
            count = -(-codes.shape[1] // 16)
            scales = torch.full((len(codes), count), 2.0**-6)
            block.set(name, QuantizedLinear(codes, scales, 4, 16).dequantize())
    before = dict(block.tensors)
    assert QUICK(block)["error"] == 0
    assert same(block.tensors, before)


@pytest.mark.parametrize("grid", GRIDS)
def test_forwards_are_exact(grid: WeightGrid) -> None:
    grid = replace(grid, clip=False)
    weight, kept = normal(6, 40), normal(6, -(-40 // grid.columns(40)), seed=1).sigmoid()
    assert torch.equal(fake_clipped(weight, kept, grid), clipped(weight, kept, grid).dequantize())
    all_kept = clipped(weight, torch.ones_like(kept), grid)
    assert torch.equal(all_kept.codes, round_to_nearest(weight, grid).codes)


def test_a_clipped_weight_moves_with_its_limit() -> None:
    """Of 4 kept to 3 with 4 bits the step is 3 / 7, and 1.1 is 2.57 of it: code 3."""
    weight = torch.tensor([[4.0, 1.1]])
    kept = torch.tensor([[0.75]], requires_grad=True)
    value = fake_clipped(weight, kept, WeightGrid(4, 2))
    assert value.tolist() == [[pytest.approx(3, rel=1e-3), pytest.approx(9 / 7, rel=1e-3)]]
    (slope,) = torch.autograd.grad(value.sum(), kept)
    # the limit is 4 kept: code 7 moves by 4, code 3 by (3 - 1.1 * 7 / 3) / 7 * 4
    assert float(slope) == pytest.approx(4 + (3 - 1.1 * 7 / 3) * 4 / 7, rel=1e-5)


def test_weights_inside_of_the_limit_pass_their_gradient_on() -> None:
    weight = torch.tensor([[4.0, 1.1, -3.5, -0.4]], requires_grad=True)
    kept = torch.tensor([[0.75]])
    values = fake_clipped(weight, kept, WeightGrid(4, 4))
    (slope,) = torch.autograd.grad(values[0, :3].sum(), weight)
    # the limit 3 is 3/4 of the first weight: code 7 follows it, so does -7; code 3 follows both
    inner = 3 / 7 - 1.1 / 3
    assert slope.tolist() == [[pytest.approx(0.75 * (1 - 1 + inner), rel=1e-5), 1, 0, 0]]


def test_rounding_passes_the_gradient_through() -> None:
    x = normal(5).requires_grad_()
    y = passed_through(x.detach().round(), 3 * x)
    assert torch.equal(y, x.detach().round())
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((5,), 3.0))


@pytest.mark.parametrize("activation", [None, ActivationGrid(4)])
def test_answers_repeat_whatever_padding_holds(activation: ActivationGrid | None) -> None:
    first, stats = run(activation=activation)
    second, again = run(activation=activation, padding=float("nan"))
    assert stats == again
    assert same(first.tensors, second.tensors)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_under_the_caller_s_gradient_mode(mode: type[torch.no_grad]) -> None:
    expected, _ = run()
    with mode():
        block, _ = run()
    assert same(block.tensors, expected.tensors)
    assert not any(tensor.requires_grad for tensor in block.tensors.values())


def test_more_steps_never_end_worse() -> None:
    block = ToyBlock()
    group = block.groups[0]
    errors = [
        OmniQuant(steps=steps).learn(block, group, GRIDS[0], scale=True).error
        for steps in (1, 5, 25)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_heads_that_share_values_share_scales() -> None:
    block = ToyBlock(kv_heads=2)
    learned = OmniQuant(steps=30).learn(block, block.groups[1], GRIDS[0], scale=True)
    scale = learned.scale.view(2, 2, 8)
    assert torch.equal(scale[:, 0], scale[:, 1])
    assert not torch.equal(scale[0], scale[1])


def test_it_starts_from_smoothed_inputs_too() -> None:
    block = ToyBlock(activation=ActivationGrid(4))
    plain = ToyBlock(activation=ActivationGrid(4))
    SmoothQuant()(block)
    assert QUICK(block)["rtn_error"] < QUICK(plain)["rtn_error"]


@pytest.mark.parametrize("activation", [None, ActivationGrid(4)])
def test_scales_are_learned_and_change_no_float_output(activation: ActivationGrid | None) -> None:
    block = ToyBlock(activation=activation, kv_heads=2, biases=True)
    plain = ToyBlock(activation=activation, kv_heads=2, biases=True)
    stats = OmniScale(QUICK)(block)
    assert stats["groups"] == 4
    assert stats["error"] < stats["rtn_error"]
    assert not block.replaced
    assert not same(block.tensors, plain.tensors)
    exact, scaled = (ToyBlock(kv_heads=2, biases=True) for _ in range(2))
    scaled.tensors = block.tensors
    expected = outputs_of(exact)
    # every factor is scaled and scaled back, three roundings of 2^-24 of it, in sums of 48 products
    # that four groups pass on
    atol = 4 * 3 * 48 * 2**-24 * float(expected.abs().max())
    torch.testing.assert_close(outputs_of(scaled), expected, rtol=0, atol=atol)


def test_scales_are_found_before_the_grid_of_values() -> None:
    """They divide the values: a grid that was found before would not fit them any more."""
    block = ToyBlock(activation=ActivationGrid(4))
    block.quantize_attention(AttentionGrid(v_bits=4))
    IaAq("minmax")(block)
    with pytest.raises(ValueError, match="values are on a grid already"):
        OmniScale(QUICK)(block)


def test_groups_that_stay_float_are_left_alone() -> None:
    block = ToyBlock(grid=None)
    assert QUICK(block) == {"groups": 0, "rtn_error": 0, "error": 0}
    assert not block.replaced
    assert same(block.tensors, ToyBlock(grid=None).tensors)


@pytest.mark.parametrize("size", [2, 4])
def test_a_team_learns_as_one(size: int) -> None:
    """Also where one of four has no token of its own."""
    results = run_as_team(size, lambda team: run(team=team))
    first, stats = results[0]
    assert all(again == stats and same(block.tensors, first.tensors) for block, again in results)
    assert stats["error"] < stats["rtn_error"]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        OmniQuant(steps=0)
    with pytest.raises(ValueError, match="must be positive"):
        OmniQuant(max_tokens=0)
    with pytest.raises(ValueError, match="must be positive"):
        OmniQuant(clip_rate=0.0)
