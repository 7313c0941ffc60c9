"""Masked calibration: what stays visible, how much is masked, and what decides."""

import random
from collections import Counter

import pytest
import torch

from passes.calibrate.mcs import Mcs
from passes.calibrate.states import State, digest

MASK = 99
PROMPT, ANSWER = 5, 40
S = PROMPT + ANSWER


def pool(prompts: int) -> list[State]:
    """The first and the last state of each prompt: all masked, nothing masked."""
    states = []
    answer = torch.arange(S) >= PROMPT
    for prompt in range(prompts):
        ids = 100 + 50 * prompt + torch.arange(S)
        for step, is_mask in enumerate((answer, torch.zeros_like(answer))):
            states.append(
                State(
                    ids=torch.where(is_mask, MASK, ids),
                    is_mask=is_mask,
                    valid=torch.arange(S) >= 2,
                    prompt=prompt,
                    block=0,
                    step=step,
                    mask_ratio=float(is_mask.sum()) / ANSWER,
                    commit_score=torch.linspace(0, 1, S),
                    finished=step == 1,
                )
            )
    return states


@pytest.mark.parametrize("visible", [0.0, 0.25, 0.9])
def test_prompt_and_beginning_stay_and_masks_are_consistent(visible: float) -> None:
    chosen, stats = Mcs(32, visible)(pool(4))
    ends = {state.prompt: state for state in pool(4) if state.finished}
    kept = PROMPT + int(visible * ANSWER)
    for state in chosen:
        end = ends[state.prompt]
        assert not state.is_mask[:kept].any()
        assert torch.equal(state.ids == MASK, state.is_mask)
        assert torch.equal(state.ids[~state.is_mask], end.ids[~state.is_mask])
        assert torch.equal(state.valid, end.valid)
        assert state.commit_score is not None
        assert torch.equal(state.commit_score, torch.linspace(0, 1, S))
        assert state.mask_ratio == pytest.approx(float(state.is_mask.sum()) / ANSWER)
        assert not state.finished
    assert stats["taken"] == len(chosen) == 32
    ratios = [state.mask_ratio for state in chosen]
    assert stats["mask_ratio"] == pytest.approx(sum(ratios) / 32)


def test_probabilities_are_spread_evenly_up_to_one() -> None:
    chosen, _ = Mcs(64, visible=0.25, levels=4)(pool(8))
    maskable = ANSWER - int(0.25 * ANSWER)
    shares = sorted(float(state.is_mask.sum()) / maskable for state in chosen)
    # 16 states with t = 1/4, 1/2, 3/4 and 1 each: 16 * 30 tokens are drawn a level. The share over
    # the first three is off by at most 4 deviations, but for one of ten thousand seeds.
    assert shares[48:] == [1.0] * 16
    assert sum(shares[:48]) / 48 == pytest.approx(0.5, abs=4 * (0.25 / 480 / 3) ** 0.5)
    assert min(shares) < 0.3
    assert max(shares[:48]) > 0.7


def test_prompts_take_turns_and_states_differ() -> None:
    chosen, _ = Mcs(50)(pool(8))
    assert set(Counter(state.prompt for state in chosen).values()) == {6, 7}
    assert [(s.prompt, s.step) for s in chosen] == sorted((s.prompt, s.step) for s in chosen)
    assert sorted(state.step for state in chosen) == list(range(50))
    assert len({digest([state]) for state in chosen}) == 50


def test_the_seed_decides_and_the_order_does_not() -> None:
    states = pool(6)
    before = digest(states)
    first = digest(Mcs(20)(states)[0])
    assert digest(states) == before, "the pool is left as it is"
    random.Random(1).shuffle(states)
    assert digest(Mcs(20)(states)[0]) == first
    assert len({digest(Mcs(20, seed=seed)(states)[0]) for seed in range(3)}) == 3


def test_impossible_pools_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="none of 1 calibration states is a finished"):
        Mcs()(pool(1)[:1])
    with pytest.raises(ValueError, match="has a masked position"):
        Mcs()(pool(1)[1:])
    with pytest.raises(ValueError, match="must be positive"):
        Mcs(0)
    with pytest.raises(ValueError, match="must be positive"):
        Mcs(levels=0)
    with pytest.raises(ValueError, match="visible below 1"):
        Mcs(visible=1.0)
