"""Rounding to nearest: every linear once, with the settings of the pass."""

from collections.abc import Callable

import pytest
import torch

from passes.base import Block
from passes.numerics import QuantizedLinear
from passes.weights.rtn import Rtn, round_to_nearest, weight_error


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 16), (8, 64)])
def test_every_linear_is_replaced(
    toy_block: Callable[..., Block], bits: int, group: int, clip: bool
) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    block = toy_block(replaced)
    stats = Rtn(bits, group, clip)(block)
    errors = []
    for linear in ("gate", "up", "down"):
        expected = round_to_nearest(block.weight(linear), bits, group, clip)
        assert torch.equal(replaced[linear].codes, expected.codes)
        assert torch.equal(replaced[linear].scales, expected.scales)
        errors.append(weight_error(block.weight(linear), expected))
    assert stats["linears"] == len(replaced) == 3
    assert stats["weight_error"] == pytest.approx(sum(errors) / 3)
    assert stats["worst_weight_error"] == max(errors)


def test_weight_error_is_relative() -> None:
    w = torch.tensor([[7.0, 3.5, 0.0, 1.0]])  # scale 1: only 3.5 is off the grid, by a half
    assert weight_error(w, round_to_nearest(w, 4, 4)) == pytest.approx(0.25 / (49 + 12.25 + 1))
    assert weight_error(w * 0, round_to_nearest(w * 0, 4, 4)) == 0.0


def test_more_bits_never_hurt() -> None:
    w = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    errors = [weight_error(w, round_to_nearest(w, bits, 32)) for bits in (2, 3, 4, 5, 6, 7, 8)]
    assert errors == sorted(errors, reverse=True)
