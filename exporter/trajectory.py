"""What the float model does on held-out prompts: the yardstick of the gate.

Every state and its top log probabilities are kept, so that a bundle can be measured again on a
device that has never seen the checkpoint.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.runtime.session import Floats, Ints

TOP = frozenset({"id1", "l1", "rest", "topk_ids", "topk_logits"})
BINS = 4  # of the mask ratio
DTYPES = {"I64": np.int64, "F64": np.float64}


@dataclass(frozen=True)
class Reference:
    """What the float model did: B prompts, T model calls, N commits, K best ids."""

    prompt_length: int  # padded on the left to this
    key_mask: Ints  # (B, L) 0 or 1
    answer: Ints  # (B, L) canvas at the end
    canvases: Ints  # (T, B, L) before each call
    commits: Ints  # (N, 4): call, row, position, id
    top_ids: Ints  # (N, K)
    top_logp: Floats  # (N, K) log probabilities
    stops: Ints | None = None  # (T,) how much of the canvas a call saw; None: all
    causal: Ints | None = None  # (T,) 1: no position saw what stands behind it

    def save(self, file: Path) -> None:
        """Write as safetensors; a bundle carries it, so that the gate can be run again anywhere."""
        import torch

        from exporter.tensor_files import write_tensors

        arrays = {k: np.array(v) for k, v in vars(self).items() if v is not None}
        write_tensors(file, {k: torch.from_numpy(array) for k, array in arrays.items()})

    @classmethod
    def load(cls, file: Path) -> "Reference":
        """Read what `save` wrote, without torch."""
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        arrays: dict[str, Any] = {}
        for name, entry in json.loads(data[8:start]).items():
            first, last = (start + offset for offset in entry["data_offsets"])
            array = np.frombuffer(data[first:last], DTYPES[entry["dtype"]])
            arrays[name] = array.reshape(entry["shape"])
        return cls(**{**arrays, "prompt_length": int(arrays["prompt_length"])})

    def seen(self, call: int) -> tuple[int, bool]:
        """How much of the canvas a call saw, and whether causally."""
        if self.stops is None or self.causal is None:
            return self.canvases.shape[2], False
        return int(self.stops[call]), bool(self.causal[call])

    def bins(self) -> Ints:
        """The bin (N,) of each commit by the mask ratio of its state: 0 = all masked … BINS − 1."""
        generated = self.canvases[:, :, self.prompt_length :]
        blank = generated[0, 0, 0]  # the first canvas is all masks
        ratios = (generated == blank).mean(-1)[self.commits[:, 0], self.commits[:, 1]]
        return np.asarray(np.minimum(BINS * (1 - ratios), BINS - 1), np.int64)

    def first_differences(self, traces: Sequence[Sequence[Sequence[int]]]) -> list[float]:
        """For each prompt its first call that commits otherwise, as share of its calls; 1: none.

        A trace holds [call, position, id], positions without padding. Calls are numbered for each
        prompt on its own, by those that commit something: how many a prompt waits through depends
        on what it is decoded together with.
        """
        firsts: list[float] = []
        for row, trace in enumerate(traces):
            pad = int(self.key_mask[row].argmax())  # padding at the left
            ours = _numbered([(call, at + pad, token) for call, at, token in trace])
            theirs = _numbered(self.commits[self.commits[:, 1] == row][:, [0, 2, 3]].tolist())
            last = max(call for call, _, _ in theirs) + 1
            firsts.append(min((commit[0] for commit in theirs - ours), default=last) / last)
        return firsts


def _numbered(commits: Sequence[Sequence[int]]) -> set[tuple[int, int, int]]:
    """(call, position, id) with the calls that occur counted from 0."""
    calls = {call: n for n, call in enumerate(sorted({commit[0] for commit in commits}))}
    return {(calls[call], position, token) for call, position, token in commits}
