"""Rotations and permutations of the input of a linear."""

import pytest
import torch
from torch import Tensor

from passes.transforms.online import Permutation, Rotation


def normal(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    q: Tensor = torch.linalg.qr(normal(n, n, seed=seed)).Q
    return q.contiguous()


@pytest.mark.parametrize(("a", "b"), [(1, 6), (3, 4), (5, 2), (4, 1)])
def test_both_sides_are_their_kronecker_product(a: int, b: int) -> None:
    left, right, x = orthogonal(a), orthogonal(b, seed=1), normal(2, 3, a * b, seed=2)
    whole = torch.kron(left, right)
    assert torch.allclose(Rotation(left, right)(x), x @ whole, atol=1e-14)


def test_one_side_turns_every_run_or_mixes_runs() -> None:
    side, x, eye = orthogonal(4), normal(5, 12, seed=2), torch.eye(3, dtype=torch.float64)
    assert torch.allclose(Rotation(right=side)(x), x @ torch.kron(eye, side), atol=1e-14)
    assert torch.allclose(Rotation(left=side)(x), x @ torch.kron(side, eye), atol=1e-14)


@pytest.mark.parametrize(
    "step",
    [
        Rotation(orthogonal(3), orthogonal(4)),
        Rotation(left=orthogonal(6)),
        Permutation(torch.tensor([5, 0, 11, 3, 4, 1, 9, 7, 8, 6, 10, 2])),
    ],
)
def test_turning_input_and_weight_leaves_the_output(step: Rotation | Permutation) -> None:
    x, weight = normal(7, 12), normal(5, 12, seed=1)
    turned = step(x) @ step(weight).T
    assert torch.allclose(turned, x @ weight.T, atol=1e-13)
    assert torch.equal(step.to("cpu")(x), step(x))


def test_a_permutation_takes_channels_in_its_order() -> None:
    x = torch.arange(8.0).reshape(2, 4)
    assert Permutation(torch.tensor([2, 0, 3, 1]))(x).tolist() == [[2, 0, 3, 1], [6, 4, 7, 5]]


def test_what_is_no_rotation_or_order_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one side"):
        Rotation()
    with pytest.raises(ValueError, match="square"):
        Rotation(left=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="every channel once"):
        Permutation(torch.tensor([0, 0, 1]))
