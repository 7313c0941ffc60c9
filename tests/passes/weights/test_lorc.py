"""LoRC: the best correction of its rank, in the weight or in the output, and what it mends."""

import pytest
import torch
from torch import Tensor

from passes.base import LowRank, Stats, Team
from passes.numerics import QuantizedLinear, WeightGrid
from passes.weights.gptq import Gptq
from passes.weights.hessian import accumulate_hessian, output_error, quadratic
from passes.weights.layerwise import collect
from passes.weights.lorc import Lorc, low_rank, square_root
from passes.weights.rtn import Rtn
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock

SHAPES = [(24, 40), (40, 24), (7, 7), (1, 30), (30, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(width: int, tokens: int = 400) -> Tensor:
    decay = torch.exp(-torch.arange(width) / max(width / 6, 1))
    x = normal(tokens, width) @ (normal(width, width, seed=1) * decay).T
    hessian = torch.zeros(width, width)
    accumulate_hessian(hessian, x, torch.ones(tokens))
    return hessian


def product(correction: LowRank) -> Tensor:
    return correction.left.double() @ correction.right.double()


@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_correction_of_this_rank_leaves_a_smaller_error(
    out: int, width: int, weighted: bool, rank: int
) -> None:
    """Eckart and Young: the least squared error is the sum of the squared singular values left."""
    difference, hessian = normal(out, width, seed=2), hessian_of(width)
    metric = hessian.double() if weighted else torch.eye(width, dtype=torch.float64)
    root = square_root(hessian) if weighted else None
    found = low_rank(difference, root, rank)
    least = float(
        torch.linalg.eigvalsh(difference.double() @ metric @ difference.double().T)[:-rank].sum()
    )
    left = quadratic(difference.double() - product(found), metric)
    # Beyond it: the root is damped by 1e-6 of the mean of the diagonal, and the entries of both
    # factors are rounded by 2^-11 of themselves, 2^-24 at least.
    whole = quadratic(difference.double(), metric)
    spread = (found.left.abs().double() @ found.right.abs().double()) * 2**-10 + 2**-24
    rounding = quadratic(spread, metric.abs())
    damping = 1e-6 * float(metric.diagonal().mean() * difference.square().sum())
    assert left <= (max(least, 0) ** 0.5 + rounding**0.5) ** 2 + damping + 1e-9 * whole


def test_weighing_moves_the_error_to_where_it_costs_less() -> None:
    difference, hessian = normal(24, 40, seed=2), hessian_of(40)
    plain = product(low_rank(difference, None, 6)).float()
    weighted = product(low_rank(difference, square_root(hessian), 6)).float()
    assert output_error(difference, weighted, hessian) < output_error(difference, plain, hessian)
    assert (difference - plain).norm() < (difference - weighted).norm()


def test_factors_are_float16_values_of_like_size() -> None:
    difference = 1e-4 * normal(64, 96)  # its products with unit vectors would be subnormal
    found = low_rank(difference, None, 5)
    for factor in (found.left, found.right):
        assert torch.equal(factor.half().float(), factor)
        assert factor.abs().median() > 2**-14, "it loses precision to float16's subnormals"
    assert found.left.shape == (64, 5)
    assert found.right.shape == (5, 96)


def test_nothing_to_correct_gives_zeros() -> None:
    found = low_rank(torch.zeros(6, 9), square_root(torch.zeros(9, 9)), 2)
    assert not product(found).any()


@pytest.mark.parametrize("tokens", [3, 100])
def test_the_root_is_one_of_the_hessian(tokens: int) -> None:
    hessian = hessian_of(30, tokens)  # three tokens: far from full rank
    root = square_root(hessian)
    assert torch.equal(root, root.tril())
    bound = 1e-3 * float(hessian.diagonal().mean())  # what damping it may need, in fp32 sums
    assert ((root @ root.T - hessian.double()).abs() <= bound).all()


def test_a_hopeless_hessian_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        square_root(torch.tensor([[1.0, 9.0], [9.0, 1.0]]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("inner", [Rtn(), Gptq()], ids=repr)
def test_the_corrected_block_is_closer_to_the_float_one(
    toy_block: type[ToyBlock], inner: Rtn | Gptq, weighted: bool
) -> None:
    grid = WeightGrid(3, 16)
    plain, corrected = toy_block(grid=grid), toy_block(grid=grid)
    inner(plain)
    stats = Lorc(inner, rank=4, weighted=weighted)(corrected)
    assert set(corrected.corrections) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert stats["error_after_lorc"] < stats["error_before_lorc"]

    def distance(block: ToyBlock) -> float:
        both = zip(block.outputs(), toy_block().outputs(), strict=True)
        return sum(float((y - z)[w > 0].square().sum()) for (y, w), (z, _) in both)

    assert distance(corrected) < distance(plain)


def test_groups_are_measured_behind_the_corrected_ones(toy_block: type[ToyBlock]) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    before, block = toy_block(), toy_block(replaced)
    Lorc(Rtn(), rank=2)(block)
    hessian, _ = collect(block, block.groups[3], before.weight("down"))
    difference = before.weight("down") - replaced["down"].dequantize()
    expected = low_rank(difference, square_root(hessian), 2)
    assert torch.equal(product(block.corrections["down"]), product(expected))


def test_the_stats_are_those_of_the_quantizer_and_two_errors(toy_block: type[ToyBlock]) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    block = toy_block(replaced)
    stats = Lorc(Rtn(), rank=2, weighted=False)(block)
    rtn = Rtn()(toy_block())
    assert {name: stats[name] for name in rtn} == rtn
    assert stats["error_before_lorc"] == pytest.approx(rtn["weight_error"], rel=1e-5)
    after = 0.0
    for name, weight in toy_block().tensors.items():
        if name in replaced:
            left = weight - replaced[name].dequantize() - product(block.corrections[name])
            after += float(left.square().sum() / weight.double().square().sum()) / 7
    assert stats["error_after_lorc"] == pytest.approx(after, rel=1e-5)


def test_without_weighing_it_needs_no_calibration(toy_block: type[ToyBlock]) -> None:
    block = toy_block()
    block.batches = []
    stats = Lorc(Rtn(), rank=2, weighted=False)(block)
    assert stats["error_after_lorc"] < stats["error_before_lorc"]


def test_groups_without_a_grid_are_left_alone(toy_block: type[ToyBlock]) -> None:
    block = toy_block(grid=None)
    assert Lorc(Rtn())(block)["error_after_lorc"] == 0
    assert not block.corrections


def test_a_rank_beyond_the_matrix_is_all_of_it(toy_block: type[ToyBlock]) -> None:
    block = toy_block()
    stats = Lorc(Rtn(), rank=1000)(block)
    assert block.corrections["k"].left.shape == (16, 16)
    # a product of two float16 factors is off by 2^-10 of itself, so the error by 2^-20
    assert stats["error_after_lorc"] < 2**-16 * stats["error_before_lorc"]


def test_a_team_takes_the_same_corrections(toy_block: type[ToyBlock]) -> None:
    def work(team: Team) -> tuple[ToyBlock, Stats]:
        block = toy_block(team=team)
        return block, Lorc(Rtn(), rank=3)(block)

    (first, stats), (second, others), *_ = run_as_team(3, work)
    assert stats == others
    alone = toy_block()
    expected = Lorc(Rtn(), rank=3)(alone)
    for name, correction in alone.corrections.items():
        assert torch.equal(product(first.corrections[name]), product(second.corrections[name]))
        # Hessians are summed in another order, which turns singular vectors a little
        error = (product(first.corrections[name]) - product(correction)).norm()
        assert error < 1e-2 * product(correction).norm()
    assert stats["error_after_lorc"] == pytest.approx(expected["error_after_lorc"], rel=1e-3)


def test_impossible_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least rank 1"):
        Lorc(Rtn(), rank=0)


def test_the_record_names_the_quantizer() -> None:
    assert repr(Lorc(Rtn(), 4)) == "Lorc(inner=Rtn(), rank=4, weighted=True)"


def test_a_correction_mends_what_few_bits_take(toy_block: type[ToyBlock]) -> None:
    """More rank, less error: of the output if weighed by it."""
    errors = [
        Lorc(Rtn(), rank)(toy_block(grid=WeightGrid(2, 16)))["error_after_lorc"]
        for rank in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
