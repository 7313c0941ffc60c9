"""Calibration states: default weights and the hash of a choice."""

import torch

from passes.calibrate.states import CalibrationSet, State, digest


def state(step: int = 0) -> State:
    return State(
        ids=torch.tensor([5, 9, 9, 0]),
        is_mask=torch.tensor([False, True, True, False]),
        valid=torch.tensor([True, True, True, False]),
        prompt=0,
        block=0,
        step=step,
        mask_ratio=1.0,
    )


def test_tokens_weigh_one_and_padding_nothing() -> None:
    calibration = CalibrationSet([state(), state(1)], provenance="x", counts={})
    assert [weight.tolist() for weight in calibration.weights] == [[1, 1, 1, 0]] * 2


def test_digest_tells_states_apart() -> None:
    other_ids, other_mask, other_valid = state(), state(), state()
    other_ids.ids = torch.tensor([5, 9, 8, 0])
    other_mask.is_mask = torch.tensor([False, True, False, False])
    other_valid.valid = torch.tensor([True, True, True, True])
    lists = [[], [state()], [state(), state()], [state(1)], [state(1), state()]]
    lists += [[state(), state(1)], [other_ids], [other_mask], [other_valid]]
    assert len({digest(states) for states in lists}) == len(lists)
    assert digest([state(), state(1)]) == digest([state(), state(1)])
