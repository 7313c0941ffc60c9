"""GPTQ: exact where theory says so, better than rounding elsewhere, and the effect of CGQ."""

import pytest
import torch
from torch import Tensor

from passes.calibrate.cgq import VisibleScore, token_weight
from passes.numerics import QuantizedLinear, WeightGrid, symmetric_scales
from passes.weights.gptq import Gptq, solve, spans
from passes.weights.hessian import accumulate_hessian, factorize, output_error
from passes.weights.rtn import round_to_nearest
from tests.toy_block import ToyBlock

# of 160 columns: ragged too
SHAPES = [(4, 32), (4, 64), (4, 128), (3, 48), (4, 200), (8, 32), (2, 7), (4, None)]
GRIDS = [WeightGrid(bits, group, clip=clip) for bits, group in SHAPES for clip in (False, True)]
GRIDS += [WeightGrid(4, 32, 2), WeightGrid(3, 48, 2, clip=True), WeightGrid(4, None, 2)]
GRID = WeightGrid(4, 32)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Inputs x (tokens, width) = z A^T, the columns of A decaying: neighbours carry each other."""
    decay = torch.exp(-torch.arange(width) / (width / 6))
    return normal(tokens, width, seed=seed) @ (normal(width, width, seed=seed + 1) * decay).T


def hessian_of(x: Tensor, w: Tensor | None = None) -> Tensor:
    hessian = torch.zeros(x.shape[1], x.shape[1])
    accumulate_hessian(hessian, x, torch.ones(len(x)) if w is None else w)
    return hessian


def gptq(
    weight: Tensor,
    hessian: Tensor,
    grid: WeightGrid = GRID,
    act_order: bool = False,
    block: int = 128,
) -> QuantizedLinear:
    return solve(weight, factorize(hessian, 0.01, act_order), grid, block)


def same(a: QuantizedLinear, b: QuantizedLinear) -> bool:
    return torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)


def textbook(weight: Tensor, x: Tensor, bits: int, group: int | None) -> QuantizedLinear:
    """Plain GPTQ as in the paper's Algorithm 1, unblocked and in fp64: no token weights at all."""
    top, group = 2 ** (bits - 1) - 1, group or weight.shape[1]
    hessian = 2 * x.T.double() @ x.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(x.shape[1])
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    w = weight.double().clone()
    codes = torch.zeros(w.shape, dtype=torch.int8)
    scales = torch.zeros(len(w), -(-w.shape[1] // group))
    for j in range(w.shape[1]):
        if j % group == 0:
            part = w[:, j : j + group].float()
            scales[:, j // group] = symmetric_scales(part, bits, group)[:, 0]
        scale = scales[:, j // group].double()
        code = torch.clamp(torch.round(w[:, j] / scale), -top - 1, top)
        codes[:, j] = code.to(torch.int8)
        error = (w[:, j] - code * scale) / inverse[j, j]
        w[:, j:] -= torch.outer(error, inverse[j, j:])
    return QuantizedLinear(codes, scales, bits, group)


@pytest.mark.parametrize(("bits", "group"), SHAPES)
@pytest.mark.parametrize("block", [32, 128])
def test_uniform_weights_give_the_codes_of_plain_gptq(
    bits: int, group: int | None, block: int
) -> None:
    weight, x = normal(8, 160, seed=5), correlated(400, 160)
    ours = gptq(weight, hessian_of(x, torch.ones(400)), WeightGrid(bits, group), block=block)
    plain = textbook(weight, x, bits, group)
    # A scale or code next to a rounding boundary may fall to either side of it in fp32 and fp64,
    # about one in a hundred rows here. It stays in its row; a wrong formula shows in all of them.
    rows = (ours.codes == plain.codes).all(1) & (ours.scales == plain.scales).all(1)
    assert rows.sum() >= 6


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_uncoupled_columns_are_rounded_to_nearest(grid: WeightGrid, act_order: bool) -> None:
    weight = normal(6, 160)
    nearest = round_to_nearest(weight, grid)
    for hessian in (torch.eye(160), torch.linspace(1, 9, 160).diag(), torch.zeros(160, 160)):
        assert same(gptq(weight, hessian, grid, act_order), nearest)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_error_of_the_output_is_below_rounding(grid: WeightGrid, act_order: bool) -> None:
    weight, hessian = normal(16, 160, seed=3), hessian_of(correlated(1000, 160))
    nearest = round_to_nearest(weight, grid).dequantize()
    solved = gptq(weight, hessian, grid, act_order).dequantize()
    assert output_error(weight, solved, hessian) < output_error(weight, nearest, hessian)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", GRIDS[-3:], ids=str)
def test_two_levels_keep_the_row_scales_and_fit_int8(grid: WeightGrid, act_order: bool) -> None:
    weight, hessian = normal(16, 160, seed=3), hessian_of(correlated(1000, 160))
    solved = gptq(weight, hessian, grid, act_order)
    channel = grid.channel(weight)
    assert channel is not None
    assert solved.channel is not None
    assert torch.equal(solved.channel, channel)
    assert solved.codes.abs().max() <= 2 ** (grid.bits - 1) - 1
    assert torch.equal(solved.int8() * channel, solved.dequantize())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("rows", [[1, 1], [16, 16, 16], [40, 8], [3, 64, 5]])
def test_stacked_linears_are_solved_as_they_are_alone(rows: list[int], act_order: bool) -> None:
    hessian = hessian_of(correlated(500, 96))
    weights = [normal(out, 96, seed=out + at) for at, out in enumerate(rows)]
    stacked = gptq(torch.cat(weights), hessian, act_order=act_order).split(rows)
    for weight, part in zip(weights, stacked, strict=True):
        assert same(part, gptq(weight, hessian, act_order=act_order))


def test_dead_columns_are_rounded_and_leave_the_others_alone() -> None:
    weight, x = normal(8, 64), correlated(300, 64)
    x[:, 32:] = 0
    solved = gptq(weight, hessian_of(x))
    alive = gptq(weight[:, :32], hessian_of(x[:, :32]))
    nearest = round_to_nearest(weight[:, 32:], GRID)
    assert torch.equal(solved.dequantize()[:, :32], alive.dequantize())
    assert torch.equal(solved.dequantize()[:, 32:], nearest.dequantize())


def test_act_order_keeps_each_column_in_the_group_of_its_place() -> None:
    weight, x = normal(8, 96), correlated(300, 96) * torch.linspace(0.1, 3, 96)
    solved = gptq(weight, hessian_of(x), act_order=True)
    assert torch.equal(solved.scales, round_to_nearest(weight, GRID).scales)
    assert not same(solved, round_to_nearest(weight, GRID))


def test_inputs_are_left_as_they_are_and_answers_repeat() -> None:
    weight, hessian = normal(16, 96), hessian_of(correlated(300, 96))
    before = weight.clone(), hessian.clone()
    first, second = gptq(weight, hessian), gptq(weight, hessian)
    assert same(first, second)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


@pytest.mark.parametrize("group", [1, 32, 48, 128, 300, 1000])
@pytest.mark.parametrize("block", [1, 32, 128])
def test_spans_cover_all_columns_and_keep_groups_up_to_date(group: int, block: int) -> None:
    cuts = list(spans(500, group, block))
    assert [column for start, stop in cuts for column in range(start, stop)] == list(range(500))
    assert all(stop - start <= block for start, stop in cuts)
    for first in range(0, 500, group):
        holder = next((start, stop) for start, stop in cuts if start <= first < stop)
        whole = holder[1] >= min(first + group, 500)
        assert whole or holder[0] == first, "columns outside the span miss the span's updates"


def test_the_pass_solves_with_its_settings(toy_block: type[ToyBlock]) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    block = toy_block(replaced)
    group = block.groups[0]
    hessian = torch.zeros(40, 40)
    for x, w in block.inputs(group):
        accumulate_hessian(hessian, x, w)
    weight = block.weight("q")
    Gptq(act_order=True, damping=0.1, block=8)(block)
    factor = factorize(hessian, 0.1, act_order=True)
    assert group.grid is not None
    assert same(replaced["q"], solve(weight, factor, group.grid, 8))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Gptq(damping=0.0)
    with pytest.raises(ValueError, match="must be positive"):
        Gptq(block=0)


def test_cgq_without_visible_scores_shifts_error_from_masked_to_visible_tokens() -> None:
    """Two populations of tokens, half of them masked, with the confidences of a roll-out."""
    torch.manual_seed(0)  # the Beta distribution takes no generator
    masked, visible = correlated(2048, 256, seed=10), correlated(2048, 256, seed=20)
    beta = torch.distributions.Beta
    score = torch.cat([beta(0.6, 1.2).sample((2048,)), beta(4.0, 1.0).sample((2048,))])
    is_mask, valid = torch.arange(4096) < 2048, torch.ones(4096, dtype=torch.bool)
    weight = normal(64, 256, seed=30)

    def errors(w: Tensor) -> tuple[float, float]:
        hessian = hessian_of(torch.cat([masked, visible]), w)
        approximation = gptq(weight, hessian, WeightGrid(4, 128)).dequantize()
        on_masked = output_error(weight, approximation, hessian_of(masked))
        return on_masked, output_error(weight, approximation, hessian_of(visible))

    def weights(rule: VisibleScore) -> Tensor:
        return token_weight(is_mask, score, valid, visible_score=rule)

    plain, literal, zero = (
        errors(w) for w in (torch.ones(4096), weights("model"), weights("zero"))
    )
    assert zero[0] < plain[0]
    assert zero[1] > plain[1]
    # the literal reading weighs both populations alike: it moves far less
    assert abs(literal[0] / plain[0] - 1) < abs(zero[0] / plain[0] - 1) / 2
