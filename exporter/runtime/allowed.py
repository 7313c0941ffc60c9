"""Which tokens may be predicted at all: ids read from files.

What is left out is left out of the graph's choice and of its sums too, so probabilities are those
among the allowed.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .bundle import ModelFacts
from .errors import UserError
from .session import Bools


def allowed_ids(allow: Path | None, forbid: Path | None, model: ModelFacts) -> Bools | None:
    """Which ids [vocabulary] may be predicted: those of one file without those of another.

    None where neither is given. The mask never may. Raises `UserError`.
    """
    if allow is None and forbid is None:
        return None
    allowed = np.full(model.vocab_size, allow is None)
    if allow is not None:
        allowed[_read(allow, model.vocab_size)] = True
    if forbid is not None:
        allowed[_read(forbid, model.vocab_size)] = False
    if model.mask_id < len(allowed):
        allowed[model.mask_id] = False
    if not allowed.any():
        raise UserError(
            "no token is left that may be predicted", hint="change --allow-ids or --forbid-ids"
        )
    return allowed


def _read(path: Path, vocabulary: int) -> list[int]:
    """Ids in a file, parted by spaces, commas or lines, with or without brackets."""
    try:
        words = re.split(r"[\s,\[\]]+", path.read_text(encoding="utf-8").strip())
        ids = [int(word) for word in words if word]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", hint="it holds token ids") from error
    wrong = [i for i in ids if not 0 <= i < vocabulary]
    if wrong:
        raise UserError(f"{path} names the id {wrong[0]}", hint=f"ids are 0 to {vocabulary - 1}")
    return ids
