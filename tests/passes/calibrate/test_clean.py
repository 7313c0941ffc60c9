"""Clean calibration: what roll-outs ended with, and nothing else."""

import random

import pytest
import torch

from passes.calibrate.clean import Clean
from passes.calibrate.states import State, digest
from passes.calibrate.tmas import Tmas
from passes.calibrate.uniform import Uniform

S = 12
MASK = 99


def trajectory(prompt: int, steps: int = 8) -> list[State]:
    """Four tokens of prompt, eight to fill, one a step; the last state is what came of it."""
    answer = torch.arange(S) >= S - steps
    states = []
    for step in range(steps + 1):
        is_mask = torch.arange(S) >= S - steps + step
        states.append(
            State(
                ids=torch.where(is_mask, MASK, 10 * prompt + torch.arange(S)),
                is_mask=is_mask,
                valid=torch.arange(S) >= prompt % 3,
                prompt=prompt,
                block=0,
                step=step,
                mask_ratio=float(is_mask.sum() / answer.sum()),
                commit_score=torch.full((S,), 0.5),
                finished=step == steps,
            )
        )
    return states


def pool(prompts: int) -> list[State]:
    return [state for prompt in range(prompts) for state in trajectory(prompt)]


def test_finished_sequences_are_drawn_without_a_mask() -> None:
    chosen, stats = Clean(5)(pool(9))
    assert len({state.prompt for state in chosen}) == 5
    for state in chosen:
        assert state.finished
        assert not state.is_mask.any()
        assert torch.equal(state.ids, 10 * state.prompt + torch.arange(S))
    assert stats == {"taken": 5, "missing": 0}


def test_all_are_taken_when_there_are_fewer() -> None:
    chosen, stats = Clean(20)(pool(9))
    assert [state.prompt for state in chosen] == list(range(9))
    assert stats == {"taken": 9, "missing": 11}


def test_the_seed_decides_and_the_order_does_not() -> None:
    states = pool(12)
    first = digest(Clean(6)(states)[0])
    random.Random(1).shuffle(states)
    assert digest(Clean(6)(states)[0]) == first
    assert len({digest(Clean(6, seed=seed)(states)[0]) for seed in range(3)}) == 3


def test_a_pool_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="none of 8 calibration states is a finished"):
        Clean()([state for state in trajectory(0) if not state.finished])
    with pytest.raises(ValueError, match="must be positive"):
        Clean(0)


@pytest.mark.parametrize("draw", [Tmas(40), Tmas(40, bins="trajectory"), Uniform(40)], ids=repr)
def test_the_draws_of_the_trajectory_never_see_an_end(draw: Tmas | Uniform) -> None:
    states = pool(6)
    visited = [state for state in states if not state.finished]
    chosen, stats = draw(states)
    expected, same = draw(visited)
    assert not any(state.finished for state in chosen)
    assert digest(chosen) == digest(expected)
    assert stats == same
