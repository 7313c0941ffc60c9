"""Calibration states: snapshots of the sequence that a diffusion model is decoding."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from passes.base import Stats


@dataclass(eq=False)
class State:
    """What the model was fed at one step of a roll-out. Activations are not kept."""

    ids: Tensor  # (S,) int64
    is_mask: Tensor  # (S,) bool, still to be generated
    valid: Tensor  # (S,) bool, not padding
    prompt: int  # index of the prompt
    block: int  # index of the block being decoded
    step: int  # forward number in the roll-out of this prompt, from 0
    mask_ratio: float  # share of the generated positions (prompt excluded) that are masked, 0 to 1
    score: Tensor | None = None  # (S,) fp32 model probability of the token it holds or would commit
    commit_score: Tensor | None = None  # (S,) fp32 probability when committed; 1 for prompt tokens
    finished: bool = False  # what a roll-out ended with: no mask is left, no model call was made


@dataclass(eq=False)
class CalibrationSet:
    """The states that a model is calibrated on, with what each token weighs in the Hessians."""

    states: list[State]
    provenance: str  # hash of what the states were made from
    counts: Stats  # how they were drawn
    weights: list[Tensor] = field(init=False)  # (S,) fp32 each; padding 0, others 1 at first

    def __post_init__(self) -> None:
        self.weights = [state.valid.float() for state in self.states]


def digest(states: Iterable[State]) -> str:
    """SHA-256 (hex) of what the states hold, in their order; scores are left out."""
    total = hashlib.sha256()
    for state in states:
        total.update(f"{state.prompt} {state.block} {state.step} {len(state.ids)} ".encode())
        for tensor in (state.ids, state.is_mask, state.valid):
            total.update(tensor.cpu().numpy().tobytes())
    return total.hexdigest()
