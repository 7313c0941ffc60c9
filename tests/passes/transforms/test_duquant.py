"""DuQuant: orthogonal, balanced, no larger maxima, and the function stays."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passes.activations.grid import ActivationGrid
from passes.base import Team
from passes.transforms.duquant import DuQuant, base_rotation, greedy_rotation, zigzag
from passes.transforms.online import Permutation, Rotation
from passes.transforms.smooth import input_maxima
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock, outputs_of, rounding_bound

TO_COME = ActivationGrid(8, "tensor")  # not calibrated yet: it rounds nothing
QUICK = DuQuant(steps=40)


def outliers(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Inputs with a few channels and a few single entries that are far larger than the rest."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=draw)
    x[:, torch.randperm(width, generator=draw)[: width // 16]] *= 15
    x[torch.randint(tokens, (3,), generator=draw), torch.randint(width, (3,), generator=draw)] = 300
    return x


@pytest.mark.parametrize("width", [1, 2, 8, 64, 128])
def test_the_base_spreads_its_first_channel_evenly(width: int) -> None:
    base = base_rotation(width, seed=0)
    # products of three matrices in fp64
    assert (base @ base.T - torch.eye(width)).abs().max() <= 8 * width * 2**-52
    assert torch.allclose(base[0], torch.full((width,), width**-0.5, dtype=torch.float64))
    assert torch.equal(base, base_rotation(width, seed=0))
    assert width <= 2 or not torch.equal(base, base_rotation(width, seed=1))


@pytest.mark.parametrize("width", [1, 8, 32, 128])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_never_makes_the_largest_entry_larger(width: int, seed: int) -> None:
    runs = outliers(40, 128, seed).reshape(-1, width)
    base = base_rotation(width, seed)
    least = float(runs.abs().max())
    for steps in (0, 1, 10, 100):
        rotation = greedy_rotation(runs, base, steps)
        assert (rotation @ rotation.T - torch.eye(width)).abs().max() < 1e-6
        largest = float((runs.double() @ rotation).abs().max())
        assert largest <= least * (1 + 1e-12), "more steps only add prefixes to choose from"
        least = largest
    assert least == 300 if width == 1 else least < 200


def test_tokens_of_zeros_and_no_tokens_need_no_rotation() -> None:
    for runs in (torch.zeros(5, 8), torch.zeros(0, 8)):
        rotation = greedy_rotation(runs, base_rotation(8, 0), 10)
        assert torch.equal(rotation, torch.eye(8, dtype=torch.float64))


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40),
    st.sampled_from([1, 2, 4, 8]),
)
def test_dealing_balances_the_runs(values: list[float], size: int) -> None:
    maxima = torch.tensor(values, dtype=torch.float64).repeat_interleave(size)
    maxima = maxima * torch.linspace(1, 2, len(maxima), dtype=torch.float64)
    order = zigzag(maxima, size)
    Permutation(order)  # every channel once
    runs = maxima[order].view(-1, size)
    deals = maxima.sort(descending=True).values.view(size, -1)
    assert torch.equal(runs.amax(1).sort(descending=True).values, deals[0]), "one of each deal"
    # what a run is ahead of another in one deal, it is behind in the next
    spread = deals[:, 0] - deals[:, -1]
    most = max(float(spread[::2].sum()), float(spread[1::2].sum()))
    assert runs.sum(1).max() - runs.sum(1).min() <= most + 1e-9 * maxima.max()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_function_stays(kv_heads: int) -> None:
    block = ToyBlock(kv_heads=kv_heads, biases=True, activation=TO_COME)
    before, bound = outputs_of(block), rounding_bound(block)
    stats = QUICK(block)
    assert (outputs_of(block) - before).abs().max() <= 3 * bound  # three steps a group
    assert stats["groups"] == 4
    assert stats["turned_crest"] < stats["crest"]


def test_each_group_is_turned_permuted_and_turned() -> None:
    block = ToyBlock(activation=TO_COME)
    before = [input_maxima(block, group) for group in block.groups]
    QUICK(block)
    for group, width, maxima in zip(block.groups, (8, 32, 8, 16), before, strict=True):
        first, second, third = block.steps[group.name]
        assert isinstance(second, Permutation)
        for step in (first, third):
            assert isinstance(step, Rotation)
            assert step.left is None
            assert step.right is not None
            assert step.right.shape == (width, width)
            assert (step.right @ step.right.T - torch.eye(width)).abs().max() <= 1e-6
        assert input_maxima(block, group).max() < maxima.max()


def test_runs_are_as_long_as_asked_where_that_divides() -> None:
    block = ToyBlock(activation=TO_COME)
    DuQuant(block=4, steps=2)(block)
    steps = [step for steps in block.steps.values() for step in steps]
    sides = [step.right for step in steps if isinstance(step, Rotation)]
    assert [None if side is None else len(side) for side in sides] == [4] * 8


def test_float_inputs_are_left_alone() -> None:
    block = ToyBlock()
    assert QUICK(block)["groups"] == 0
    assert not any(block.steps.values())


def test_padding_never_matters_and_the_seed_does() -> None:
    def turned(seed: int, padding: float) -> dict[str, Tensor]:
        block = ToyBlock(activation=TO_COME, padding=padding)
        DuQuant(steps=10, seed=seed)(block)
        return block.tensors

    first, second, other = turned(0, 0.0), turned(0, float("nan")), turned(1, 0.0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["down"], other["down"])


def test_a_team_turns_alike() -> None:
    def turned(team: Team) -> dict[str, Tensor]:
        block = ToyBlock(activation=TO_COME, team=team)
        QUICK(block)
        return block.tensors

    first, second = run_as_team(2, turned)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two, not 96"):
        DuQuant(block=96)
    with pytest.raises(ValueError, match="must not be negative"):
        DuQuant(steps=-1)
