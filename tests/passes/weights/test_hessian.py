"""The weighted Hessian, its error measure, and the factor of its inverse."""

import pytest
import torch
from torch import Tensor

from passes.weights.hessian import (
    ROWS_AT_ONCE,
    accumulate_hessian,
    factorize,
    inverse_factor,
    output_error,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hessian_of(x: Tensor, w: Tensor) -> Tensor:
    hessian = torch.zeros(x.shape[1], x.shape[1])
    accumulate_hessian(hessian, x, w)
    return hessian


def test_weights_of_one_give_the_bits_of_a_plain_hessian() -> None:
    weighted, plain = torch.zeros(40, 40), torch.zeros(40, 40)
    for seed, tokens in enumerate((33, 1, 64)):
        x = normal(tokens, 40, seed=seed)
        assert accumulate_hessian(weighted, x, torch.ones(tokens)) == tokens
        plain.addmm_(x.T, x, alpha=2)
    assert torch.equal(weighted, plain)


def test_it_is_the_weighted_sum_of_outer_products() -> None:
    x, w = normal(50, 12), torch.rand(50, generator=torch.Generator().manual_seed(1))
    expected = sum(2 * w[t].double() ** 2 * torch.outer(x[t], x[t]).double() for t in range(50))
    assert isinstance(expected, Tensor)
    # 50 products summed in fp32: below 55 roundings of 2^-24 on a sum of magnitudes
    bound = 2 * torch.einsum("t,ti,tj->ij", w.square(), x.abs(), x.abs()).double() * 55 * 2**-24
    assert ((hessian_of(x, w) - expected).abs() <= bound).all()


def test_a_wide_one_is_made_in_parts_and_symmetric() -> None:
    width = 2 * ROWS_AT_ONCE + 40
    total, plain = torch.zeros(width, width), torch.zeros(width, width).double()
    for seed, tokens in enumerate((20, 7)):
        x, w = normal(tokens, width, seed=seed), torch.linspace(0.5, 2, tokens)
        accumulate_hessian(total, x, w)
        y = (x * w[:, None]).double()
        plain += 2 * y.T @ y
    assert torch.equal(total, total.T)
    # 27 products of |x w| < 10 summed in fp32
    torch.testing.assert_close(total.double(), plain, rtol=0, atol=30 * 200 * 27 * 2**-24)


@pytest.mark.parametrize("junk", [0.0, 1e9, float("nan"), float("inf")])
def test_padding_changes_no_bit(junk: float) -> None:
    x = normal(30, 12)
    padded = torch.full((40, 12), junk)
    padded[:20], padded[25:35] = x[:20], x[20:]
    w = torch.ones(40)
    w[20:25] = w[35:] = 0
    assert torch.equal(hessian_of(padded, w), hessian_of(x, torch.ones(30)))
    assert accumulate_hessian(torch.zeros(12, 12), padded, w) == 30
    assert accumulate_hessian(torch.zeros(12, 12), padded, w * 0) == 0


def test_output_error_is_the_relative_squared_error_of_the_output() -> None:
    x, w = normal(64, 20), torch.linspace(0.5, 1.5, 64)
    weight, other = normal(7, 20, seed=1), normal(7, 20, seed=2)

    def squared(rows: Tensor) -> float:
        return float((w[:, None] * (x @ rows.T)).double().square().sum())

    expected = squared(weight - other) / squared(weight)
    assert output_error(weight, other, hessian_of(x, w)) == pytest.approx(expected, rel=1e-5)
    assert output_error(weight, weight, hessian_of(x, w)) == 0.0
    assert output_error(weight, other, torch.zeros(20, 20)) == 0.0


@pytest.mark.parametrize("act_order", [False, True])
def test_the_factor_inverts_the_damped_hessian(act_order: bool) -> None:
    hessian = hessian_of(normal(200, 32) * torch.linspace(0.5, 2, 32), torch.ones(200))
    factor = factorize(hessian, 0.01, act_order)
    order = torch.arange(32) if factor.order is None else factor.order
    damped = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(32)
    damped = damped[order][:, order]
    product = factor.upper.double() @ damped @ factor.upper.T.double()
    # U is rounded to fp32: each entry of U H U^T moves by at most 2 * 2^-24 * |U| |H| |U^T|
    bound = (
        2 * 2**-24 * (factor.upper.abs().double() @ damped.abs() @ factor.upper.abs().T.double())
    )
    assert ((product - torch.eye(32)).abs() <= bound + 1e-12).all()
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.dead, factor.retries) == (0, 0)
    if act_order:
        diagonal = hessian.diagonal()[order]
        assert (diagonal[:-1] >= diagonal[1:]).all()


def test_dead_columns_stay_uncoupled() -> None:
    x = normal(100, 8)
    x[:, [2, 5]] = 0
    factor = factorize(hessian_of(x, torch.ones(100)), 0.01, act_order=False)
    assert factor.dead == 2
    off_diagonal = factor.upper - factor.upper.diagonal().diag()
    assert (off_diagonal[[2, 5]] == 0).all()
    assert (off_diagonal[:, [2, 5]] == 0).all()
    alone = factorize(torch.zeros(8, 8), 0.01, act_order=False)
    assert alone.dead == 8
    assert torch.equal(alone.upper, alone.upper.diagonal().diag())


def test_damping_goes_up_until_the_factorization_succeeds() -> None:
    indefinite = torch.eye(4)
    indefinite[0, 1] = indefinite[1, 0] = 1.05  # eigenvalues 2.05, -0.05, 1, 1; mean diagonal 1
    factor = factorize(indefinite, 0.001, act_order=False)
    assert factor.retries == 2  # 0.001 and 0.01 are too little, 0.1 will do
    shifted = inverse_factor(indefinite, 0.1)
    assert shifted is not None
    torch.testing.assert_close(factor.upper, shifted.float(), rtol=1e-6, atol=0)
    assert inverse_factor(indefinite, 0.01) is None


def test_a_hopeless_hessian_is_refused() -> None:
    with pytest.raises(ValueError, match="even with damping 1"):
        factorize(torch.tensor([[1.0, 9.0], [9.0, 1.0]]), 0.01, act_order=False)
    with pytest.raises(ValueError, match="not finite"):
        factorize(torch.tensor([[1.0, 0.0], [0.0, float("nan")]]), 0.01, act_order=False)
