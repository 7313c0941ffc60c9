"""Where an answer ends: the first end-of-text token with nothing left open before it."""

from __future__ import annotations

import numpy as np

from .bundle import ModelFacts
from .session import Bools, Ints


def stop_ids(model: ModelFacts) -> list[int]:
    """The ids that end an answer: end of text, end of turn."""
    return [i for i in (model.eos_id, model.eot_id) if i is not None]


def first_stop(canvas: Ints, prompt_length: int, model: ModelFacts) -> Ints:
    """Position [B] of the first stop id after the prompt; the canvas length where there is none."""
    stops = np.isin(canvas[:, prompt_length:], stop_ids(model))
    where = np.where(stops.any(1), stops.argmax(1), stops.shape[1]) if stops.size else 0
    return np.asarray(prompt_length + where + np.zeros(len(canvas), np.int64), np.int64)


def close_finished(canvas: Ints, prompt_length: int, model: ModelFacts) -> Bools:
    """Fill the masks after the end of finished rows with the end-of-text id; which rows [B] are.

    A row is finished when no mask stands before its first stop id, in the prompt or after it.
    """
    stop = first_stop(canvas, prompt_length, model)
    masked = canvas == model.mask_id
    before = np.arange(canvas.shape[1]) < stop[:, None]
    finished: Bools = (stop < canvas.shape[1]) & ~(masked & before).any(1)
    canvas[masked & finished[:, None]] = next(iter(stop_ids(model)), model.pad_id)
    return finished
