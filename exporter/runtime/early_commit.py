"""Early commit: the answer is filled at once when the model is sure enough of all of it.

Prophet (arXiv 2508.19982): the mean gap between the two best logits, over the masks that are left,
must reach a limit that falls as decoding goes on.
"""

from __future__ import annotations

import numpy as np

from .session import Bools, Floats, Reductions
from .task import Task

GAPS = (7.5, 5.0, 2.5)  # of logits, in the first, second and last third of the answer


def ready(found: Reductions, masks: Bools, task: Task) -> Bools:
    """Which rows [B] can be filled now; `masks` [B, W] are theirs at the predicted positions.

    Progress is the share of the masks of the start that are tokens by now, which is the share of
    the calls for samplers that commit evenly.
    """
    with np.errstate(invalid="ignore"):
        gaps = found["l1"].astype(np.float64) - found["l2"]
        count = masks.sum(1)
        mean = np.where(masks, gaps, 0.0).sum(1) / np.maximum(count, 1)
        progress = 1 - task.masked().sum(1) / np.maximum(task.blank.sum(1), 1)
        return np.asarray((count > 0) & (mean >= limits(progress)), np.bool_)


def limits(progress: Floats) -> Floats:
    """The gap [B] that a row needs at `progress` [B], from 0 to 1."""
    phase = np.clip((progress * len(GAPS)).astype(np.int64), 0, len(GAPS) - 1)
    return np.asarray(GAPS)[phase]
