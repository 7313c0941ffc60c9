"""The clip search: never a larger error of a row, and smaller where an outlier stands alone."""

import pytest
import torch
from torch import Tensor

from passes.numerics import WeightGrid
from passes.transforms.clip import clip_rows, diagonal_blocks, group_errors, rounded, row_errors

GRIDS = [
    WeightGrid(4, 16),
    WeightGrid(3, 7),
    WeightGrid(4),
    WeightGrid(4, 16, levels=2),
    WeightGrid(8, 32),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hessian(width: int) -> Tensor:
    x = normal(100, width, seed=5) * torch.linspace(0.2, 2, width)
    return x.T @ x


@pytest.mark.parametrize("grid", GRIDS)
def test_no_row_has_a_larger_error(grid: WeightGrid) -> None:
    rows, h = normal(24, 40) ** 3, hessian(40)
    clipped = clip_rows(rows, h, grid)
    before, after = (row_errors(rows - rounded(w, grid), h) for w in (rows, clipped))
    assert (after <= before).all()
    assert (after < before).any() or grid.bits == 8
    assert (clipped.abs() <= rows.abs()).all()
    assert (clipped.sign() * rows.sign() >= 0).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_rows_on_their_grid_stay(grid: WeightGrid) -> None:
    rows = rounded(normal(8, 40), grid)
    exact = (rounded(rows, grid) == rows).all(1)  # of a scale in fp16, not all are
    assert exact.any()
    assert torch.equal(clip_rows(rows, hessian(40), grid)[exact], rows[exact])


def test_a_large_weight_that_meets_small_inputs_is_cut() -> None:
    """Seven small weights share a grid with one 4 times as large whose input hardly ever moves."""
    rows = torch.tensor([[0.3, -0.55, 0.8, 0.15, -0.95, 0.4, 0.6, 4.0]])
    h = torch.tensor([1.0] * 7 + [1e-4]).diag()
    clipped = clip_rows(rows, h, WeightGrid(4, 8))
    assert torch.equal(clipped[:, :7], rows[:, :7])
    assert clipped[0, 7] == pytest.approx(4 * 0.55)


@pytest.mark.parametrize("width", [1, 7, 16, 40, 64])
def test_blocks_couple_the_columns_of_a_group(width: int) -> None:
    h = hessian(40)
    blocks = diagonal_blocks(h, width)
    for index, block in enumerate(blocks):
        part = h[index * width : (index + 1) * width, index * width : (index + 1) * width]
        assert torch.equal(block[: len(part), : len(part)], part)
        assert float(block.abs().sum()) == pytest.approx(float(part.abs().sum()))


def test_errors_of_uncoupled_groups_add_up() -> None:
    h = torch.block_diag(*(hessian(8) for _ in range(5)))
    rows = normal(6, 40)
    parts, whole = group_errors(rows, diagonal_blocks(h, 8)), row_errors(rows, h)
    # sums of 8 + 5 and of 40 products that may cancel: in units of the sum of their sizes
    bound = 60 * 2**-24 * row_errors(rows.abs(), h.abs())
    assert ((parts.sum(1) - whole).abs() <= bound).all()
