"""What the float model does on held-out prompts: the yardstick of the gate.

Every state and its top log probabilities are kept, so that a bundle can be measured again on a
device that has never seen the checkpoint.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.runtime.session import Floats, Ints

TOP = frozenset({"id1", "l1", "rest", "topk_ids", "topk_logits"})
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

    def save(self, file: Path) -> None:
        """Write as safetensors; a bundle carries it, so that the gate can be run again anywhere."""
        import torch

        from exporter.tensor_files import write_tensors

        write_tensors(file, {k: torch.from_numpy(np.array(v)) for k, v in vars(self).items()})

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
