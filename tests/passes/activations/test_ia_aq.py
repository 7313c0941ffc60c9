"""IA-AQ: never worse than min-max for any channel, and attention decides which tokens matter."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from passes.activations.attention import AttentionGrid, quantize_probabilities, quantize_values
from passes.activations.ia_aq import Alphas, IaAq, alpha_grid
from passes.base import Stats, Team
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock

GRID = AttentionGrid(v_bits=4)
GRIDS = [GRID, AttentionGrid(v_bits=2, p_bits=8), AttentionGrid(v_bits=8, p_bits=4, p_scale="row")]
ALPHAS: tuple[Alphas, ...] = ("minmax", "paper", "range", "wide")


class Outliers(ToyBlock):
    """Token 20 has values twenty times as large, and no other token looks at it."""

    def operands(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for p, v, w in super().operands():
            p, v = p.clone(), v.clone()
            v[:, :, 20] *= 20
            p[:, :, :, 20] = 0
            yield p / p.sum(-1, keepdim=True), v, w


def found(block: ToyBlock) -> tuple[Tensor, Tensor]:
    """The scales and zero points (kv heads, K) that are set on a block."""
    assert block.grid is not None
    assert block.grid.v_scale is not None
    assert block.grid.v_zero is not None
    return block.grid.v_scale, block.grid.v_zero


def product_loss(
    block: ToyBlock, grid: AttentionGrid, scale: Tensor, zero: Tensor, weighted: bool = False
) -> Tensor:
    """sum |P (V_s - V)|^2 by (kv head, channel), head by head and in fp64."""
    total = torch.zeros(scale.shape, dtype=torch.float64)
    grid = replace(grid, v_scale=scale, v_zero=zero)
    for p, v, w in block.operands():
        p, error = quantize_probabilities(p, grid), quantize_values(v, grid) - v
        for sequence in range(len(p)):
            valid = w[sequence] > 0
            weights = w[sequence][valid].double() if weighted else 1.0
            for head in range(p.shape[1]):
                kv = head * v.shape[1] // p.shape[1]
                rows = p[sequence, head][valid][:, valid].double()
                off = (rows @ error[sequence, kv][valid].double()).square()
                total[kv] += (off.T * weights**2).sum(1)
    return total


def covering(block: ToyBlock, bits: int) -> tuple[Tensor, Tensor]:
    """Min-max scales and zero points of the values, the plain way."""
    parts = [v.transpose(1, 2)[w > 0] for _, v, w in block.operands()]  # (tokens, kv heads, K)
    low, high = torch.cat(parts).amin(0).clamp(max=0), torch.cat(parts).amax(0).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    return scale, (-low / scale).round()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("grid", GRIDS)
def test_minmax_covers_all_tokens_and_zero(
    toy_block: type[ToyBlock], grid: AttentionGrid, kv_heads: int
) -> None:
    block = toy_block(kv_heads=kv_heads)
    block.quantize_attention(grid)
    stats = IaAq("minmax")(block)
    scale, zero = found(block)
    expected = covering(block, grid.v_bits)
    assert torch.equal(scale, expected[0])
    assert torch.equal(zero, expected[1])
    assert ((zero >= 0) & (zero <= 2**grid.v_bits - 1)).all()
    for _, v, w in block.operands():
        rounded = quantize_values(v, replace(grid, v_scale=scale, v_zero=zero))
        # half a step, and up to half a step more at the end that the rounded zero point moves
        error = (rounded - v).abs() / scale[:, None]
        assert (error.transpose(1, 2)[w > 0] <= 1 + 1e-4).all()
    assert (stats["channels"], stats["alpha"]) == (kv_heads * 8, 1)
    assert stats["error"] == stats["minmax_error"] > 0


@pytest.mark.parametrize("block_type", [ToyBlock, Outliers])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("alphas", ALPHAS[1:])
def test_every_channel_gets_the_best_candidate(
    alphas: Alphas, grid: AttentionGrid, weighted: bool, block_type: type[ToyBlock]
) -> None:
    block = block_type(weigh=True)
    block.quantize_attention(grid)
    stats = IaAq(alphas, weighted=weighted)(block)
    scale, zero = found(block)
    widest, covered = covering(block, grid.v_bits)
    assert torch.equal(zero, covered)
    losses = torch.stack(
        [product_loss(block, grid, widest * a, zero, weighted) for a in alpha_grid(alphas)]
    )
    chosen = product_loss(block, grid, scale, zero, weighted)
    # products of 30 terms in fp32 against fp64
    slack = 1 + 100 * 2**-24
    assert (chosen <= losses[0] * slack).all(), "worse than min-max"
    torch.testing.assert_close(chosen, losses.amin(0), rtol=slack - 1, atol=0)
    ratios = scale / widest
    grid_of_alphas = torch.tensor(alpha_grid(alphas))
    assert ((ratios[..., None] - grid_of_alphas).abs().amin(-1) < 1e-6).all()
    assert stats["alpha"] == pytest.approx(float(ratios.mean()))
    assert stats["error"] <= stats["minmax_error"]
    share = float(chosen.sum() / losses[0].sum())
    assert stats["error"] / stats["minmax_error"] == pytest.approx(share, rel=1e-5)


def test_headroom_widens_the_range(toy_block: type[ToyBlock]) -> None:
    scales = []
    for headroom in (1.0, 1.25):
        block = toy_block()
        block.quantize_attention(GRID)
        IaAq("minmax", headroom=headroom)(block)
        scales.append(found(block))
    # three roundings of fp32; the zero point depends on the ratio of both ends alone
    torch.testing.assert_close(scales[1][0], 1.25 * scales[0][0], rtol=4 * 2**-24, atol=0)
    assert torch.equal(scales[1][1], scales[0][1])
    with pytest.raises(ValueError, match=r"at least 1, not 0.9"):
        IaAq(headroom=0.9)


def test_each_candidate_list_holds_those_before_it() -> None:
    lists = [set(alpha_grid(alphas)) for alphas in ALPHAS]
    assert all(a < b for a, b in pairwise(lists))
    for alphas in ALPHAS:
        candidates = alpha_grid(alphas)
        assert candidates[0] == 1
        assert candidates == sorted(candidates, reverse=True)
    assert alpha_grid("paper") == [1.0, 0.8]
    assert min(alpha_grid("range")) == 0.8
    assert min(alpha_grid("wide")) == 0.05


def test_uniform_attention_looks_for_the_least_error_of_the_token_mean() -> None:
    block = Uniform()
    block.quantize_attention(GRID)
    IaAq()(block)
    scale, zero = found(block)
    widest, _ = covering(block, 4)

    def loss(scale: Tensor) -> Tensor:
        total = torch.zeros(2, 8, dtype=torch.float64)
        for _, v, w in block.operands():
            error = quantize_values(v, replace(GRID, v_scale=scale, v_zero=zero)) - v
            for sequence in range(len(w)):
                valid = w[sequence] > 0
                mean = error[sequence][:, valid].double().mean(1)
                total += 2 * valid.sum() * mean.square()  # a row a query, two heads
        return total

    losses = torch.stack([loss(widest * alpha) for alpha in alpha_grid("wide")])
    # A mean of errors that nearly cancel is off by 30 * 2^-24 of their size, half a step.
    atol = 1e4 * float((30 * 2**-24 * scale).square().max())
    torch.testing.assert_close(loss(scale), losses.amin(0), rtol=1e-4, atol=atol)


class Uniform(ToyBlock):
    """Queries of zero: everyone attends to everyone alike."""

    def __init__(self) -> None:
        super().__init__()
        self.set("q", torch.zeros_like(self.weight("q")))


def test_the_rule_mse_looks_at_the_values_alone(toy_block: type[ToyBlock]) -> None:
    block = toy_block()
    block.quantize_attention(GRID)
    stats = IaAq(rule="mse")(block)
    scale, zero = found(block)

    def loss(scale: Tensor) -> Tensor:
        grid = replace(GRID, v_scale=scale, v_zero=zero)
        errors = [(quantize_values(v, grid) - v).double().square() for _, v, w in block.operands()]
        weights = [w[:, None, :, None] for _, _, w in block.operands()]
        return sum(
            ((e * w).sum((0, 2)) for e, w in zip(errors, weights, strict=True)),
            torch.zeros(2, 8, dtype=torch.float64),
        )

    widest, _ = covering(block, 4)
    losses = torch.stack([loss(widest * alpha) for alpha in alpha_grid("wide")])
    torch.testing.assert_close(loss(scale), losses.amin(0), rtol=1e-6, atol=0)
    assert stats["error"] < stats["minmax_error"]


def test_attention_tells_which_tokens_matter() -> None:
    """A large token that nobody looks at costs the plain search resolution, IA-AQ nothing."""
    losses = []
    for step in (IaAq(), IaAq(rule="mse")):
        block = Outliers()
        block.quantize_attention(GRID)
        step(block)
        losses.append(product_loss(block, GRID, *found(block)).sum())
    assert losses[0] < losses[1] / 10


@pytest.mark.parametrize("step", [IaAq(weighted=True), IaAq(rule="mse", weighted=True)], ids=repr)
@pytest.mark.parametrize("junk", [float("nan"), 1e9])
def test_padding_changes_nothing(toy_block: type[ToyBlock], junk: float, step: IaAq) -> None:
    grids = []
    for padding in (0.0, junk):
        block = toy_block(padding=padding, weigh=True)
        block.quantize_attention(GRIDS[1])
        stats = step(block)
        grids.append((*found(block), stats))
    assert torch.equal(grids[0][0], grids[1][0])
    assert torch.equal(grids[0][1], grids[1][1])
    assert grids[0][2] == grids[1][2]


def test_token_weights_count_only_if_asked(toy_block: type[ToyBlock]) -> None:
    def chosen(weigh: bool, weighted: bool) -> Tensor:
        block = toy_block(weigh=weigh)
        block.quantize_attention(GRID)
        IaAq(weighted=weighted)(block)
        return found(block)[0]

    block = toy_block(weigh=True)
    one = [replace(batch, weights=batch.valid.float()) for batch in block.batches]
    block.batches = one
    block.quantize_attention(GRID)
    IaAq(weighted=True)(block)
    assert torch.equal(chosen(weigh=True, weighted=False), found(block)[0])
    assert not torch.equal(chosen(weigh=True, weighted=True), found(block)[0])


def test_several_processes_decide_as_one(toy_block: type[ToyBlock]) -> None:
    def work(team: Team) -> tuple[Tensor, Tensor, Stats]:
        block = toy_block(team=team)
        block.quantize_attention(GRIDS[1])
        stats = IaAq()(block)
        return *found(block), stats

    alone = toy_block()
    alone.quantize_attention(GRIDS[1])
    expected = IaAq()(alone)
    for size in (2, 3, 4):  # the fourth has no states at all
        for scale, zero, stats in run_as_team(size, work):
            assert torch.equal(scale, found(alone)[0])
            assert torch.equal(zero, found(alone)[1])
            assert stats == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("grid", [None, AttentionGrid(8, 8, 16, 8)])
def test_float_values_are_nothing_to_do(
    toy_block: type[ToyBlock], grid: AttentionGrid | None
) -> None:
    block = toy_block()
    block.grid = grid
    assert IaAq()(block) == {"channels": 0}
    assert block.grid is grid


def test_the_rest_of_the_grid_stays(toy_block: type[ToyBlock]) -> None:
    block, turn = toy_block(), torch.eye(8)
    block.quantize_attention(AttentionGrid(8, 4, 4, 8, "row", False, turn))
    IaAq()(block)
    assert block.grid is not None
    scale, zero = found(block)
    expected = AttentionGrid(8, 4, 4, 8, "row", False, turn, scale, zero)
    assert vars(block.grid) == vars(expected)


def test_a_channel_of_zeros_is_fine(toy_block: type[ToyBlock]) -> None:
    block = toy_block()
    weight = block.weight("v").clone()
    weight[3] = 0
    block.set("v", weight)
    block.quantize_attention(GRID)
    IaAq()(block)
    scale, zero = found(block)
    assert (scale > 0).all()
    assert zero[0, 3] == 0
    for _, v, _ in block.operands():
        assert block.grid is not None
        assert not quantize_values(v, block.grid)[:, 0, :, 3].any()
