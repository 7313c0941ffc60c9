"""One model call for the rows of a task that have something open."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .bundle import ModelFacts
from .candidates import scale, wanted
from .session import Array, Bools, Ints, Reductions, Session
from .settings import Settings
from .task import Task

SUPPRESSED = -1e4  # added to a logit that must not count; exp() of it is 0


def forward(session: Session, task: Task, open_: Bools, window: Ints) -> Reductions:
    """Reductions [B, W] at the positions `window` [W]; rows without anything `open_` are not fed.

    Rows that were not fed hold -1 and infinity.
    """
    rows, settings = np.flatnonzero(open_.any(1)), task.settings
    ids, mask = task.canvas[rows], task.key_mask[rows]
    guided = settings.cfg_scale > 0
    if guided:  # the unconditional rows know nothing of what was given
        ids = np.concatenate([ids, np.where(task.blank[rows], ids, task.model.mask_id)])
        mask = np.concatenate([mask, mask])
    found = session.forward(
        ids,
        mask,
        window,
        special_bias(task.model, settings),
        settings.cfg_scale if guided else None,
        scale(settings) if settings.reshapes else None,
        wanted(settings),
    )
    return {name: _spread(array, rows, len(task.canvas)) for name, array in found.items()}


def special_bias(model: ModelFacts, settings: Settings) -> npt.NDArray[np.float32]:
    """LLaDA's two switches as [2, E]: on the logits of the special ids, and on confidences only."""
    bias = np.zeros((2, len(model.special_ids)), np.float32)
    if settings.eos_inf:
        bias[0, np.asarray(model.special_ids) == model.eos_id] = SUPPRESSED
    if settings.confidence_eos_inf:
        bias[1] = SUPPRESSED
    return bias


def _spread(array: Array, rows: Ints, batch: int) -> Array:
    """The array [R, …] with its rows at their places among `batch` rows."""
    if len(rows) == batch:
        return array
    missing = np.inf if np.issubdtype(array.dtype, np.floating) else -1
    spread = np.full((batch, *array.shape[1:]), missing, array.dtype)
    spread[rows] = array
    return spread
