"""Keys and values that the float model keeps between calls."""

from dataclasses import dataclass

import torch

from exporter.families import Spec
from passes.activations.attention import FLOAT, round_tokens


@dataclass(frozen=True)
class Kept:
    """What one block keeps of rows whose call feeds the positions from `start` on.

    Keys stand behind norm and rotary embedding. Where attention keeps codes it is these that are
    kept, as the numbers that they stand for. Else grids of attention are applied to what is read,
    because those of keys depend on which keys are visible; what is kept is rounded to `bits` alone.
    """

    keys: torch.Tensor  # (B, kv heads, C, K), C positions; overwritten by calls
    values: torch.Tensor
    start: int
    bits: int = FLOAT

    def feed(
        self, k: torch.Tensor, v: torch.Tensor, codes: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, once k and v (B, kv heads, Q, K) stand at `start`.

        `codes`: they are what attention computes with, on its grids already if it has some.
        """
        fed, bits = slice(self.start, self.start + k.shape[2]), FLOAT if codes else self.bits
        self.keys[:, :, fed] = round_tokens(k, bits)
        self.values[:, :, fed] = round_tokens(v, bits)
        return self.keys, self.values


@dataclass(frozen=True)
class FloatCache:
    """`Cache` of the decode loop: keys and values (layers, rows, kv heads, length, K) in fp32."""

    keys: torch.Tensor
    values: torch.Tensor
    bits: int = FLOAT  # that a number needs; it stands here as the float that it stands for

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def kept(self, block: int, rows: slice, start: int) -> Kept:
        """The part of one block for some rows, for a call that feeds from `start` on."""
        return Kept(self.keys[block, rows], self.values[block, rows], start, self.bits)


def float_cache(spec: Spec, rows: int, length: int, device: str, bits: int = FLOAT) -> FloatCache:
    """An empty cache for `rows` sequences of `length` positions."""
    shape = (spec.layers, rows, spec.kv_heads, length, spec.head_dim)
    return FloatCache(torch.zeros(shape, device=device), torch.zeros(shape, device=device), bits)
