"""The choice of attention's arithmetic: what errors are, and which arithmetic they lead to."""

from dataclasses import replace

import pytest
import torch

from passes.activations.attention import FLOAT, AttentionGrid
from passes.activations.choose_attention import ChooseAttention
from passes.activations.ia_aq import IaAq
from passes.base import Team
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock

GRID = AttentionGrid(q_bits=8, k_bits=8, v_bits=8, p_bits=8)


def block_on(grid: AttentionGrid | None, large: float = 1.0, **settings: object) -> ToyBlock:
    """`large`: what one token's values are multiplied by."""
    block = ToyBlock(**settings)  # type: ignore[arg-type]
    block.grid = grid
    if large != 1:
        plain = block.queries_keys_values

        def with_large(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            q, k, v = plain(x)
            v = v.clone()
            v[:, :, 20] *= large
            return q, k, v

        block.queries_keys_values = with_large  # type: ignore[method-assign]
    if grid is not None and grid.v_bits != FLOAT:
        IaAq("minmax")(block)
    return block


def test_a_usual_block_stays_on_integers() -> None:
    block = block_on(GRID)
    before = block.grid
    stats = ChooseAttention(0.01)(block)
    assert stats["chosen"] == 0 and block.grid is before
    assert 0 < stats["float_values"] < stats["integers"] < 0.01


def test_one_token_of_large_values_wants_floats_for_them() -> None:
    """Queries and keys stay on integers: it is values that are coarse."""
    block = block_on(GRID, large=300.0)
    stats = ChooseAttention(0.01)(block)
    assert stats["integers"] > 0.01 > stats["float_values"]
    assert stats["chosen"] == 1


def test_the_limit_decides() -> None:
    stats = ChooseAttention(1e-9)(block_on(GRID))
    between = (stats["float_values"] + stats["integers"]) / 2
    for limit, chosen in ((1.0, 0), (between, 1), (1e-9, 2)):
        block = block_on(GRID)
        assert ChooseAttention(limit)(block) == {**stats, "chosen": chosen}
        assert block.grid is not None
        bits = (block.grid.q_bits, block.grid.v_bits, block.grid.p_bits)
        assert bits == ((8, 8, 8), (8, FLOAT, FLOAT), (FLOAT, FLOAT, FLOAT))[chosen]
        assert (block.grid.v_scale is None) == (chosen > 0)


def test_keys_keep_their_mean() -> None:
    """By it caches know what to hold, whatever was chosen."""
    mean = torch.ones(2, 8)
    stats = ChooseAttention(1e-9)(block_on(replace(GRID, k_mean=mean)))
    for limit in (1.0, (stats["float_values"] + stats["integers"]) / 2, 1e-9):
        block = block_on(replace(GRID, k_mean=mean))
        ChooseAttention(limit)(block)
        assert block.grid is not None and block.grid.k_mean is mean


@pytest.mark.parametrize("grid", [None, AttentionGrid()])
def test_float_attention_is_left_alone(grid: AttentionGrid | None) -> None:
    block = block_on(grid)
    assert ChooseAttention(0.01)(block) == {"chosen": 2}
    assert block.grid is grid


def test_padding_does_not_count() -> None:
    """Whatever stands there, as a query or as a value."""
    found = [ChooseAttention(1.0)(block_on(GRID, padding=each)) for each in (0.0, 1e6)]
    assert found[0] == found[1]


def test_processes_find_the_same_together() -> None:
    alone = ChooseAttention(1.0)(block_on(GRID))

    def share(team: Team) -> dict[str, float]:
        return dict(ChooseAttention(1.0)(block_on(GRID, team=team)))

    for stats in run_as_team(2, share):
        assert stats == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_limits_are_above_zero(limit: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ChooseAttention(limit)
