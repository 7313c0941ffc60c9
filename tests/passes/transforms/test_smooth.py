"""SmoothQuant: scales by the formula, folded without a change of the function."""

import pytest
import torch
from torch import Tensor

from passes.activations.grid import ActivationGrid
from passes.base import Team
from passes.transforms.smooth import SmoothQuant, input_maxima, smoothing_scale, weight_maxima
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock, outputs_of, rounding_bound

INT8 = ActivationGrid(8)
TO_COME = ActivationGrid(8, "tensor")  # not calibrated yet: it rounds nothing


def smoothed(padding: float = 0.0, team: Team | None = None) -> dict[str, Tensor]:
    """All tensors of a block after the pass."""
    block = ToyBlock(activation=INT8, kv_heads=2, biases=True, padding=padding, team=team)
    SmoothQuant()(block)
    return block.tensors


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_scales_split_the_range_of_each_channel(alpha: float) -> None:
    inputs, weights = torch.tensor([8.0, 2.0, 100.0]), torch.tensor([0.5, 2.0, 0.01])
    s = smoothing_scale(inputs, weights, alpha)
    product = inputs * weights  # what stays: (x / s) (w s)
    # two powers, a division and a product of fp32
    assert torch.allclose(inputs / s, product ** (1 - alpha), rtol=1e-6, atol=0)
    assert torch.allclose(weights * s, product**alpha, rtol=1e-6, atol=0)


def test_scales_are_clamped_and_unknown_channels_left_alone() -> None:
    inputs, weights = torch.tensor([0.0, 1e-12, 3.0]), torch.tensor([2.0, 1.0, 0.0])
    assert smoothing_scale(inputs, weights, 0.5).tolist() == [1.0, pytest.approx(1e-5), 1.0]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("biases", [False, True])
def test_the_function_stays(kv_heads: int, biases: bool) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=biases, activation=TO_COME)
    before, bound = outputs_of(block), rounding_bound(block)
    stats = SmoothQuant()(block)
    assert (outputs_of(block) - before).abs().max() <= bound
    assert stats["groups"] == 4
    assert stats["smoothed_crest"] < stats["crest"]


def test_half_and_half_makes_inputs_and_weights_as_large() -> None:
    block = ToyBlock(kv_heads=4, activation=TO_COME)
    SmoothQuant(0.5)(block)
    for group in block.groups:
        inputs, weights = input_maxima(block, group), weight_maxima(block, group)
        # the largest of a channel is off by what fp32 makes of the sums of 48 terms in it
        assert torch.allclose(inputs, weights, rtol=48 * 2**-24 * 10, atol=0)


def test_float_inputs_are_left_alone() -> None:
    block, before = ToyBlock(), ToyBlock()
    assert SmoothQuant()(block) == {"groups": 0, "crest": 0.0, "smoothed_crest": 0.0}
    assert same(block.tensors, before.tensors)


def test_padding_never_matters() -> None:
    assert same(smoothed(padding=float("nan")), smoothed(padding=1e9))


@pytest.mark.parametrize("size", [2, 5])
def test_a_team_finds_what_one_finds(size: int) -> None:
    """Maxima are exact, so the members agree to the bit; some of five have no batch at all."""
    alone = smoothed()
    assert all(same(part, alone) for part in run_as_team(size, lambda team: smoothed(team=team)))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a share, not 1\.5"):
        SmoothQuant(1.5)
