"""CGQ of DLLMQuant (arXiv 2508.14090): weigh calibration tokens by mask state and confidence.

The Hessian is `sum_t w_t^2 x_t x_t^T` with `w = a + sqrt(s)`: a = 1 for masked and 0.7 for visible
tokens, s the confidence (arXiv 2506.13759, eq. 125). What s is for visible tokens is not published,
and it decides whether the weights do much: it is a setting.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from passes.base import Stats
from passes.calibrate.states import CalibrationSet

VisibleScore = Literal["model", "commit", "zero"]


@dataclass(frozen=True)
class Cgq:
    """Certainty-Guided Quantization: set the token weights of a calibration set.

    `visible_score` is the s of a visible token: what the model gives it now ("model"), gave it when
    it was committed ("commit"), or 0 ("zero", which moves accuracy from visible to masked tokens).
    """

    masked: float = 1.0
    visible: float = 0.7
    visible_score: VisibleScore = "model"

    def __post_init__(self) -> None:
        if self.masked < 0 or self.visible < 0:
            raise ValueError(f"masked and visible must not be negative: {self!r}")

    def __call__(self, calibration: CalibrationSet, /) -> Stats:
        """Stats: `masked_share`, the mean share of w^2 on masked tokens, and the largest weight."""
        shares: list[float] = []
        for index, state in enumerate(calibration.states):
            where = f"state of prompt {state.prompt}, step {state.step}"
            if state.score is None:
                raise ValueError(f"Cgq: the {where} has no score")
            weight = token_weight(
                state.is_mask,
                state.score,
                state.valid,
                self.masked,
                self.visible,
                self.visible_score,
                state.commit_score,
            )
            calibration.weights[index] = weight
            mass = weight.double().square()
            shares.append(float(mass[state.is_mask].sum() / mass.sum()))
        largest = max((float(weight.max()) for weight in calibration.weights), default=0.0)
        return {
            "states": len(shares),
            "masked_share": sum(shares) / max(len(shares), 1),
            "largest_weight": largest,
        }


def token_weight(
    is_mask: Tensor,
    score: Tensor,
    valid: Tensor,
    masked: float = 1.0,
    visible: float = 0.7,
    visible_score: VisibleScore = "model",
    commit_score: Tensor | None = None,
) -> Tensor:
    """Weights w (S,) fp32 of the tokens of one state: `(masked | visible) + sqrt(s)`, scaled.

    All inputs are (S,); scores are probabilities. Padding weighs 0, and the mean of w^2 over valid
    tokens is 1: a Hessian keeps its size, and weights that do not differ are exactly 1. ValueError
    if a valid token has no finite score, or none weighs anything.
    """
    s = torch.where(is_mask, score, visible_scores(score, visible_score, commit_score)).double()
    if not torch.isfinite(s[valid]).all():
        raise ValueError(f"{int((~torch.isfinite(s[valid])).sum())} valid tokens have no score")
    base = torch.where(is_mask, masked, visible).double()
    w = torch.where(valid, base + s.clamp(0, 1).sqrt(), 0.0)
    mass = w.square().sum()
    if mass == 0:
        raise ValueError(f"no token weighs anything: {int(valid.sum())} of {len(w)} are valid")
    return (w * (valid.sum() / mass).sqrt()).float()


def visible_scores(score: Tensor, rule: VisibleScore, commit_score: Tensor | None) -> Tensor:
    """The scores (S,) that `rule` gives to visible tokens."""
    if rule == "zero":
        return torch.zeros_like(score)
    if rule == "model":
        return score
    if commit_score is None:
        raise ValueError("visible_score `commit` needs the commit scores of the states")
    return commit_score
