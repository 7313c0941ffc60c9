"""Raw logits at chosen positions: what a likelihood is made of.

Nothing is suppressed, the mask id and padding rows of the head included, as upstream.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from exporter.float_session import ROWS_AT_ONCE, FloatModel
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.session import Floats, Ints, Session

LOGITS_AT_ONCE = 1 << 25  # of one call of a bundle

Parts = Iterator[tuple[Ints, int, Floats]]
RawLogits = Callable[[Ints, Ints, Ints], Parts]
"""(ids [n, S], rows [m], positions [m]) → parts of the logits that predict these positions.

A part is (which of the m, first id, float64 logits [some of m, some ids]). Each id of each of the
m comes once.
"""


def of_model(model: FloatModel) -> RawLogits:
    """From hidden states, a slice of the vocabulary at a time."""

    @torch.no_grad()
    def logits(ids: Ints, rows: Ints, positions: Ints) -> Parts:
        everyone = torch.ones(ids.shape, dtype=torch.bool)
        hidden = model.hidden(torch.from_numpy(ids), everyone)
        picked = hidden[rows, _row_of(positions, model.spec.shift)]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            which = np.arange(start, min(start + ROWS_AT_ONCE, len(rows)))
            for first, part in model.logit_slices(picked[which]):
                yield which, first, part.double().cpu().numpy()

    return logits


def of_bundle(session: Session, facts: ModelFacts) -> RawLogits:
    """From a graph that returns the logits of every position."""
    bias = np.zeros((2, len(facts.special_ids)), np.float32)
    window, wanted = np.zeros(1, np.int64), frozenset({"logits"})

    def logits(ids: Ints, rows: Ints, positions: Ints) -> Parts:
        at_once = max(1, LOGITS_AT_ONCE // (ids.shape[1] * facts.vocab_size))
        for start in range(0, len(ids), at_once):
            fed = ids[start : start + at_once]
            mask = np.ones(fed.shape, np.bool_)
            found = session.forward(fed, mask, window, bias, None, None, wanted)["logits"]
            which = np.flatnonzero((rows >= start) & (rows < start + at_once))
            at = _row_of(positions[which], facts.shift)
            yield which, 0, found[rows[which] - start, at].astype(np.float64)

    return logits


def _row_of(positions: Ints, shift: bool) -> Ints:
    """The row of the logits that predicts each position; upstream's shift is not undone here."""
    return np.maximum(positions - 1, 0) if shift else positions
