"""SmoothQuant (arXiv 2211.10438): move outliers of the input from activations to weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from passes.base import Block, LinearGroup, Stats, seen_enough
from passes.transforms.fold import fold_scale, tie

LEAST = 1e-5  # what scales are clamped to


@dataclass(frozen=True)
class SmoothQuant:
    """Scale the inputs of every group whose inputs are to be rounded.

    Groups with float inputs are left alone: scaling would only make their weights harder to round.
    So are groups that saw hardly a token.
    """

    alpha: float = 0.5  # share of the difficulty that goes to the weights: 0 none, 1 all

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a share, not {self.alpha}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats over the groups: largest |x| over mean |x| of channel maxima, before and after."""
        groups = [g for g in block.groups if g.activation is not None and g.source]
        groups = [group for group in groups if seen_enough(block, group)]
        before, after = 0.0, 0.0
        # A later group divides rows of an earlier one's linear: then the earlier sees what is left.
        for group in reversed(groups):
            inputs = input_maxima(block, group)
            weights = tie(block, group, weight_maxima(block, group))
            s = smoothing_scale(tie(block, group, inputs), weights, self.alpha)
            fold_scale(block, group, s)
            before, after = before + crest(inputs), after + crest(inputs / s)
        count = max(len(groups), 1)
        return {"groups": len(groups), "crest": before / count, "smoothed_crest": after / count}


def smoothing_scale(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (eq. 4) from the maxima (in,) of both.

    At least 1e-5; 1 for a channel that calibration saw at 0 only, or that no weight reads, since
    nothing is known of the better choice there.
    """
    s = inputs.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), s.clamp_min(LEAST), 1.0)


def input_maxima(block: Block, group: LinearGroup) -> Tensor:
    """Largest |x| (in,) of each channel over the calibration tokens of the whole team."""
    like = block.weight(group.linears[0])
    largest = like.new_zeros(like.shape[1])
    for x, w in block.inputs(group):
        largest = torch.maximum(largest, channel_maxima(x[w != 0]))
    return block.team.join(largest[None]).amax(0)


def channel_maxima(x: Tensor) -> Tensor:
    """Largest |x| (in,) over tokens x (T, in); 0 if there are none."""
    return x.abs().amax(0) if len(x) else x.new_zeros(x.shape[1])


def weight_maxima(block: Block, group: LinearGroup) -> Tensor:
    """Largest |w| (in,) of each column over all linears of the group.

    That is what the paper says; the code of QDLM looks at `q` and `up` alone.
    """
    columns = [block.weight(linear).abs().amax(0) for linear in group.linears]
    return torch.stack(columns).amax(0)


def crest(maxima: Tensor) -> float:
    """How far the largest channel stands above the mean of all; 1 if they are equal."""
    mean = float(maxima.mean())
    return float(maxima.max()) / mean if mean > 0 else 1.0
