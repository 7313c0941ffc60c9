"""The calibrated mean key: what it is, and that attention without rounding does not notice it."""

from dataclasses import replace

import pytest
import torch

from passes.activations.attention import AttentionGrid, quantize_keys, quantized_attention
from passes.activations.key_mean import KeyMean
from passes.base import Team
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock

GRID = AttentionGrid(q_bits=8, k_bits=8, v_bits=8, p_bits=8)


def block_on(grid: AttentionGrid | None, **settings: object) -> ToyBlock:
    block = ToyBlock(**settings)  # type: ignore[arg-type]
    block.grid = grid
    return block


def mean_of(block: ToyBlock) -> torch.Tensor:
    assert block.grid is not None
    assert block.grid.k_mean is not None
    return block.grid.k_mean


@pytest.mark.parametrize("weigh", [False, True])
def test_it_is_the_mean_over_tokens_that_count(weigh: bool) -> None:
    """However much they weigh; padding does not, whatever it holds."""
    block = block_on(GRID, padding=1e6, weigh=weigh)
    keys = torch.cat([k.transpose(1, 2)[w > 0] for k, w in block.positioned_keys()])
    stats = KeyMean()(block)
    assert stats["tokens"] == len(keys) == 150
    assert 0 < stats["share"] < 1
    # float64 sums, rounded once
    torch.testing.assert_close(mean_of(block), keys.double().mean(0).float(), rtol=2e-7, atol=1e-9)


def test_it_is_that_of_turned_keys() -> None:
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    plain, turned = block_on(GRID), block_on(replace(GRID, rotation=turn))
    KeyMean()(plain)
    KeyMean()(turned)
    # 8 products of 2^-24 each, of keys up to some 8
    torch.testing.assert_close(mean_of(turned), mean_of(plain) @ turn, rtol=0, atol=8 * 8 * 2**-23)


@pytest.mark.parametrize("grid", [None, AttentionGrid(v_bits=8, p_bits=8)])
def test_float_keys_need_none(grid: AttentionGrid | None) -> None:
    block = block_on(grid)
    assert KeyMean()(block) == {"tokens": 0}
    assert block.grid is grid


def test_processes_find_the_same_together() -> None:
    alone = block_on(GRID)
    KeyMean()(alone)

    def work(team: Team) -> torch.Tensor:
        block = block_on(GRID, team=team)
        KeyMean()(block)
        return mean_of(block)

    for mean in run_as_team(3, work):
        torch.testing.assert_close(mean, mean_of(alone), rtol=2e-7, atol=1e-9)


def test_codes_of_a_key_depend_on_that_key_alone() -> None:
    """Which they do not with the mean of the keys that are there."""
    draw = torch.Generator().manual_seed(1)
    k = torch.randn(1, 2, 6, 8, generator=draw)
    static = replace(GRID, k_mean=torch.randn(2, 8, generator=draw))
    assert torch.equal(
        quantize_keys(k, None, static)[:, :, :3], quantize_keys(k[:, :, :3], None, static)
    )
    assert not torch.equal(
        quantize_keys(k, None, GRID)[:, :, :3], quantize_keys(k[:, :, :3], None, GRID)
    )


def test_no_probability_knows_of_it() -> None:
    """Of operands that 8 bits hold exactly: whole numbers up to 127, of which one is 127."""
    draw = torch.Generator().manual_seed(2)
    q, k, v = torch.randint(-100, 101, (3, 1, 2, 6, 8), generator=draw).float()
    q[..., 0] = k[..., 0] = 127
    grid = AttentionGrid(q_bits=8, k_bits=8, k_mean=torch.zeros(2, 8))
    moved = torch.tensor([[0.0, *[3.0] * 7]] * 2)
    found = quantized_attention(q / 64, k / 64, v, None, None, grid)
    shifted = quantized_attention(
        q / 64, (k + moved[:, None]) / 64, v, None, None, replace(grid, k_mean=moved / 64)
    )
    assert torch.equal(found, shifted)
