"""TMAS: exact counts, even strata, and a choice that only the pool and the seed decide."""

import random
from collections import Counter
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.calibrate.states import State, digest
from passes.calibrate.tmas import Tmas, largest_remainder, share_out, stratified

QUOTAS = (0.3, 0.2, 0.2, 0.3)


def rollout(prompt: int, steps: int = 16, blocks: int = 4) -> list[State]:
    """The states of one prompt: one token of `steps` committed a step, blocks in turn."""
    states = []
    for step in range(steps):
        is_mask = torch.arange(steps) >= step
        states.append(
            State(
                ids=torch.where(is_mask, 99, prompt),
                is_mask=is_mask,
                valid=torch.ones(steps, dtype=torch.bool),
                prompt=prompt,
                block=step * blocks // steps,
                step=step,
                mask_ratio=1 - step / steps,
            )
        )
    return states


def pool(prompts: int, steps: int = 16) -> list[State]:
    return [state for prompt in range(prompts) for state in rollout(prompt, steps)]


@given(
    st.integers(0, 500),
    st.lists(st.integers(0, 100), min_size=1, max_size=8).filter(any),
)
def test_largest_remainder_sums_up_and_stays_within_one(total: int, parts: list[int]) -> None:
    shares = [part / 100 for part in parts]
    counts = largest_remainder(total, shares)
    assert sum(counts) == total
    for count, part in zip(counts, parts, strict=True):
        assert abs(count * sum(parts) - total * part) < sum(parts)


def test_largest_remainder_of_the_quotas() -> None:
    assert largest_remainder(128, QUOTAS) == [38, 26, 26, 38]
    assert largest_remainder(10, QUOTAS) == [3, 2, 2, 3]
    assert largest_remainder(1, (0.5, 0.5)) == [1, 0]


@given(st.integers(1, 60), st.lists(st.integers(0, 30), min_size=4, max_size=4))
def test_a_shortage_is_shared_out_until_met_or_the_pool_is_empty(
    samples: int, available: list[int]
) -> None:
    wanted = largest_remainder(samples, QUOTAS)
    taken = share_out(wanted, available, QUOTAS)
    assert sum(taken) == min(samples, sum(available))
    for want, have, took in zip(wanted, available, taken, strict=True):
        assert min(want, have) <= took <= have


def test_a_shortage_is_shared_out_by_quota() -> None:
    # 30 wanted of the first bin and none there: the others get 30 more as 2 : 2 : 3
    assert share_out([30, 20, 20, 30], [0, 99, 99, 99], QUOTAS) == [0, 29, 28, 43]
    # the third can take 1 more only; what it leaves goes to its neighbours as 2 : 3
    assert share_out([30, 20, 20, 30], [0, 99, 21, 99], QUOTAS) == [0, 32, 21, 47]
    assert share_out([4, 0, 0], [1, 9, 9], (1.0, 0.0, 0.0)) == [1, 2, 1]


@pytest.mark.parametrize("bins", ["mask-ratio", "trajectory"])
@pytest.mark.parametrize("samples", [1, 10, 37, 128])
def test_bins_hold_their_quota(bins: Literal["mask-ratio", "trajectory"], samples: int) -> None:
    chosen, stats = Tmas(samples, bins=bins)(pool(32))
    wanted = largest_remainder(samples, QUOTAS)
    # in these roll-outs both kinds of bin are the four quarters of 16 steps
    taken = Counter(state.step // 4 for state in chosen)
    assert [taken[number] for number in range(4)] == wanted
    assert [stats[f"wanted_{number}"] for number in range(4)] == wanted
    assert [stats[f"taken_{number}"] for number in range(4)] == wanted
    assert [stats[f"available_{number}"] for number in range(4)] == [128] * 4
    assert stats["shortage"] == stats["missing"] == 0
    assert len({id(state) for state in chosen}) == samples


def test_the_two_kinds_of_bin_differ_when_commits_are_uneven() -> None:
    states = rollout(0)
    for state in states:
        state.mask_ratio = 1.0 if state.step < 12 else 0.0
    _, by_mask = Tmas(4, bins="mask-ratio")(states)
    _, by_step = Tmas(4, bins="trajectory")(states)
    assert [by_mask[f"available_{number}"] for number in range(4)] == [12, 0, 0, 4]
    assert [by_step[f"available_{number}"] for number in range(4)] == [4, 4, 4, 4]


def test_a_shortage_is_recorded() -> None:
    states = [state for state in pool(8) if state.step >= 4 or state.prompt == 0]
    chosen, stats = Tmas(40)(states)
    assert stats["wanted_0"] == 12
    assert stats["available_0"] == stats["taken_0"] == 4
    assert stats["shortage"] == 8
    assert stats["missing"] == 0
    assert len(chosen) == 40


def test_a_small_pool_is_taken_whole() -> None:
    states = pool(2)
    chosen, stats = Tmas(128)(states)
    assert {id(state) for state in chosen} == {id(state) for state in states}
    assert stats["missing"] == 128 - 32
    assert Tmas(8)([]) == ([], Tmas(8)([])[1])


@settings(max_examples=10)
@given(st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_pool(order: random.Random) -> None:
    states = pool(6)
    expected = digest(Tmas(20)(states)[0])
    order.shuffle(states)
    chosen, _ = Tmas(20)(states)
    assert digest(chosen) == expected
    assert [(s.prompt, s.step) for s in chosen] == sorted((s.prompt, s.step) for s in chosen)


def test_the_seed_decides() -> None:
    digests = [digest(Tmas(20, seed=seed)(pool(6))[0]) for seed in (0, 0, 1, 2)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@given(st.integers(0, 96), st.integers(0, 5))
def test_strata_take_turns(count: int, seed: int) -> None:
    states = [state for state in pool(6) if state.prompt or state.step % 4 == 0]
    order = stratified(states, range(len(states)), random.Random(seed))
    assert sorted(order) == list(range(len(states)))
    strata = Counter((state.prompt, state.block) for state in states)
    taken = Counter((states[index].prompt, states[index].block) for index in order[:count])
    most = max(taken.values(), default=0)
    assert all(taken[key] >= min(size, most - 1) for key, size in strata.items())


def test_settings_without_any_sample_are_refused() -> None:
    for wrong in ({"samples": 0}, {"quotas": ()}, {"quotas": (0.0,)}, {"quotas": (1.0, -1.0)}):
        with pytest.raises(ValueError, match="must be positive"):
            Tmas(**wrong)
