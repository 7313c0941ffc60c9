"""`DqxAttention` in Triton: a second kernel, written from the operator's contract alone."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ort_ops.attention.op import AttentionTops
from tools.triton_twins.attend import Rounded, Seen, attend_to
from tools.triton_twins.rounding import codes_of, round_all

KEYS = 64  # of a tile


@dataclass(frozen=True)
class AttentionTwin:
    """The attributes. `tops.v` and `tops.p` 0: products with values in halves."""

    heads: int
    tops: AttentionTops

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor,
        common: torch.Tensor, v_scale: torch.Tensor, v_zero: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """y (B, Q, H · K) of the operator's inputs."""
        rows, kv_heads, keys, width = k.shape
        queries = q.shape[1]
        mean = torch.empty(rows, kv_heads, width, device=q.device)
        block = triton.next_power_of_2(width)
        mean_keys[(rows * kv_heads,)](
            k, common.contiguous().view(torch.uint8), mean, keys, kv_heads, width, KEYS, block
        )
        q_codes, q_scales = round_all(q, width, 1 / self.tops.q, self.tops.q)
        k_codes, k_scales = round_all(k, width, 1 / self.tops.k, self.tops.k, mean, keys)
        v_codes = self._values(v, v_scale, v_zero)
        q_codes = q_codes.view(rows, queries, self.heads, width)
        rounded = Rounded(q_codes, q_scales, k_codes, k_scales, v_codes, v_scale, v_zero)
        return attend_to(rounded, Seen(visible=visible), self.tops.p, q.dtype)

    def _values(self, v: torch.Tensor, v_scale: torch.Tensor, v_zero: torch.Tensor) -> torch.Tensor:
        """Codes - 128 of values, or values as they are."""
        if self.tops.p == 0:
            return v
        rows, kv_heads, keys, width = v.shape
        codes = torch.empty_like(v, dtype=torch.int8)
        round_values[(rows * kv_heads, triton.cdiv(keys, KEYS))](
            v, v_scale, v_zero, codes, keys, kv_heads, width, self.tops.v, KEYS,
            triton.next_power_of_2(width), enable_fp_fusion=False,
        )  # fmt: skip
        return codes


@triton.jit
def mean_keys(k, common, mean, keys, kv_heads, width, KEYS: tl.constexpr, WIDTH: tl.constexpr):
    """A program a key head: the mean of its common keys."""
    head = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    count = 0
    for start in range(0, keys, KEYS):
        at = start + tl.arange(0, KEYS)
        shown = tl.load(common + head // kv_heads * keys + at, mask=at < keys, other=0) != 0
        place = (head * keys + at)[:, None] * width + channels[None, :]
        there = shown[:, None] & (channels[None, :] < width)
        total += tl.sum(tl.load(k + place, mask=there, other=0.0).to(tl.float32), 0)
        count += tl.sum(shown.to(tl.int32), 0)
    tl.store(mean + head * width + channels, total / tl.maximum(count, 1), mask=channels < width)


@triton.jit
def round_values(
    v, v_scale, v_zero, codes, keys, kv_heads, width, top, KEYS: tl.constexpr, WIDTH: tl.constexpr
):
    """A program KEYS vectors: codes - 128 on their channels' scales."""
    head = tl.program_id(0).to(tl.int64)
    key, channels = tl.program_id(1) * KEYS + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    own = head % kv_heads * width + channels
    scale = tl.load(v_scale + own, mask=channels < width, other=1.0).to(tl.float32)[None, :]
    zero = tl.load(v_zero + own, mask=channels < width, other=0.0).to(tl.float32)[None, :]
    place = (head * keys + key)[:, None] * width + channels[None, :]
    there = (key[:, None] < keys) & (channels[None, :] < width)
    values = tl.load(v + place, mask=there, other=0.0).to(tl.float32)
    # clipped, then moved by the zero: whole numbers up to top, so that nothing is rounded
    code = codes_of(values, scale, -zero, top - zero) + zero
    tl.store(codes + place, (code - 128.0).to(tl.int8), mask=there)
