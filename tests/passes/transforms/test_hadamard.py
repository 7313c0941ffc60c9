"""Hadamard rotations: exact where they claim to be, orthogonal and flat everywhere."""

import math

import pytest
import torch

from passes.transforms.hadamard import (
    hadamard,
    hadamard_dense,
    hadamard_matrix,
    hadamard_split,
    hartley_matrix,
    is_hadamard_order,
)

WIDTHS = [64, 128, 160, 576, 768, 896, 1024, 1088, 1536, 2048, 2560, 2816, 3584, 4096, 4864]
WIDE = [5120, 6144, 8960, 9728, 12288, 14336, 18944]


@pytest.mark.parametrize("n", [n for n in range(1, 301) if is_hadamard_order(n)])
def test_rows_are_orthogonal_in_integers(n: int) -> None:
    h = hadamard_matrix(n).long()
    assert (h.abs() == 1).all()
    assert torch.equal(h @ h.T, n * torch.eye(n, dtype=torch.long))


def test_which_orders_are_known() -> None:
    """All multiples of 4 up to 100 but those that need a prime power or a search."""
    known = {n for n in range(1, 101) if is_hadamard_order(n)}
    assert known == {1, 2, *range(4, 101, 4)} - {52, 92, 100}


@pytest.mark.parametrize("n", [52, 92, 3, 6, 10, 172])
def test_an_unknown_order_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"order {n}"):
        hadamard_matrix(n)


@pytest.mark.parametrize("n", WIDTHS + WIDE)
def test_widths_of_models_split_into_two_cheap_hadamard_factors(n: int) -> None:
    a, b = hadamard_split(n)
    assert a * b == n
    assert is_hadamard_order(a)
    assert is_hadamard_order(b)
    others = [(d, n // d) for d in range(1, n + 1) if n % d == 0]
    fit = [p for p in others if is_hadamard_order(p[0]) and is_hadamard_order(p[1])]
    assert a + b == min(map(sum, fit))


def test_splits_of_the_common_models() -> None:
    widths = (4096, 12288, 3584, 18944, 576)
    splits = [hadamard_split(n) for n in widths]
    assert splits == [(64, 64), (96, 128), (56, 64), (128, 148), (24, 24)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 14, 40, 43, 52, 172, 48, 576, 43 * 16, 9 * 49])
def test_every_width_has_a_flat_orthogonal_rotation(n: int) -> None:
    turned = hadamard(n, torch.float64)(torch.eye(n, dtype=torch.float64))
    # n products of entries below 2 / sqrt(n), each rounded a few times in fp64
    assert (turned @ turned.T - torch.eye(n)).abs().max() < 16 * n * 2**-52
    hartleys = sum(not is_hadamard_order(m) for m in hadamard_split(n))
    assert turned.abs().max() <= math.sqrt(2**hartleys / n) * (1 + 1e-12)
    assert torch.allclose(turned, hadamard_dense(n, torch.float64), rtol=0, atol=1e-15 * n)


def test_a_prime_width_is_turned_by_one_hartley_matrix() -> None:
    assert hadamard(43).left is None
    assert torch.equal(hadamard_dense(43), hartley_matrix(43).float())


def test_one_outlier_is_spread_evenly() -> None:
    x = torch.zeros(3584)
    x[1234] = 100.0
    turned = hadamard(3584)(x)
    assert torch.allclose(turned.abs(), torch.full((3584,), 100 / 3584**0.5), rtol=1e-6)


def test_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one channel"):
        hadamard(0)
