"""The float model in torch: one for all families, steered by `Spec`.

RMSNorm, rotary embedding on half-split pairs, grouped-query attention, optional q/k/v biases and
q/k norms, gated SiLU MLP or experts, tied or untied head, full or block-causal attention. The same
code runs a quantized model: a `Layer` says what is rounded on the way.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from exporter.families import Spec
from exporter.kv_cache import Kept
from exporter.layer import Layer
from exporter.linear_groups import ATTENTION, MLP
from exporter.mlp import Trace, trace_mlp
from passes.activations.attention import (
    probabilities,
    quantized_attention,
    rounded_attention,
    rounded_operands,
)

GROUPS = (*ATTENTION, *MLP)  # of a dense block; see linear_groups.py for others
LINEARS = tuple(name for group in GROUPS for name in group.linears)


@dataclass(frozen=True)
class Context:
    """What the blocks of one forward share: rotary tables (B, 1, Q, R/2) and who sees whom.

    S positions, of which Q are fed: all of them, unless keys and values are kept.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None  # (B, 1, Q, 1), where queries grow with their position
    allowed: torch.Tensor | None  # bool (B, 1, 1 or Q, S), None: everyone sees everyone
    common: torch.Tensor | None  # bool (B, 1, 1, S): keys that every query of the canvas sees
    kept: Kept | None = None  # of the block that runs, if keys and values are kept between calls


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis; squares are summed in fp32."""
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (x.float() * scale).to(x.dtype) * weight


def frequencies(spec: Spec) -> torch.Tensor:
    """Radians a position of each pair of channels that turns, fp32 (R/2,)."""
    powers = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim
    plain, yarn = 1.0 / spec.rope_theta**powers, spec.yarn
    if yarn is None:
        return plain

    def channel(turns: float) -> float:
        """That turns so often in the length before the stretch."""
        turn = math.log(yarn.length / (2 * math.pi * turns)) / math.log(spec.rope_theta)
        return spec.rotary_dim / 2 * turn

    # upstream's borders are whole channels, and never one and the same
    first = max(math.floor(channel(yarn.beta_fast)), 0)
    last = min(math.ceil(channel(yarn.beta_slow)), spec.rotary_dim - 1)
    channels = torch.arange(len(plain), dtype=torch.float32)
    stretched = ((channels - first) / max(last - first, 1e-3)).clamp(0, 1)
    return plain * (1 - stretched) + plain / yarn.factor * stretched


def query_scale(spec: Spec, positions: torch.Tensor) -> torch.Tensor | None:
    """What queries at positions (B, Q) are multiplied by, fp32 (B, 1, Q, 1); None: by nothing."""
    if spec.query_scale is None:
        return None
    steps = (positions // spec.query_scale.length).float()
    return (1 + spec.query_scale.beta * steps.log1p())[:, None, :, None]


def rotary_tables(spec: Spec, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, fp32, of shape positions.shape + (R/2,), R the channels that turn."""
    angles = positions.float()[..., None] * frequencies(spec).to(positions.device)
    scale = 1.0 if spec.yarn is None else spec.yarn.scale
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, H, S, K): of R channels, channel i turns with channel i + R/2."""
    width = 2 * cos.shape[-1]
    first, second = x[..., :width].float().chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), -1)


def make_context(
    spec: Spec, key_mask: torch.Tensor, fed: slice = slice(None), causal: bool = False
) -> Context:
    """Tables and masks for key_mask bool (B, S), false at what is hidden, such as padding.

    Queries are those of the positions `fed`. Blocks of a block-causal mask are counted from the
    first position that is shown, so that left padding does not move their borders. Of models that
    commit causally the last block that is shown is the one that is filled, unless `causal`.
    """
    counted = (key_mask.long().cumsum(1) - 1).clamp_min(0)
    positions = counted
    if spec.positions == "absolute":
        positions = torch.arange(key_mask.shape[1], device=key_mask.device).expand_as(key_mask)
    cos, sin = rotary_tables(spec, positions[:, fed])
    allowed = common = None if bool(key_mask.all()) else key_mask[:, None, None, :]
    if spec.attention == "block-causal":
        assert spec.block_length is not None
        blocks = counted if spec.commits_causally else counted // spec.block_length
        reached = blocks[:, None, :] <= blocks[:, fed, None]
        if spec.commits_causally and not causal:
            filled = counted[:, fed] > counted[:, -1:] - spec.block_length
            reached = reached | filled[..., None]
        allowed = reached[:, None] if allowed is None else reached[:, None] & allowed
        common = (key_mask & (blocks == 0))[:, None, None]
    scale = query_scale(spec, positions[:, fed])
    return Context(cos[:, None], sin[:, None], scale, allowed, common)


def shadow_context(spec: Spec, key_mask: torch.Tensor, shadow: torch.Tensor) -> Context:
    """Of a canvas with key_mask bool (B, S) and its shadow: masks at positions (B, R), -1: nowhere.

    The canvas sees itself, the shadow all but the token that it stands for; see runtime/shadow.py.
    """
    canvas, length = make_context(spec, key_mask), key_mask.shape[1]
    at = shadow.clamp_min(0)

    def with_shadow(table: torch.Tensor) -> torch.Tensor:  # (B or 1, 1, S, R/2)
        table = table.expand(len(at), -1, -1, -1)
        rows = at[:, None, :, None].expand(-1, -1, -1, table.shape[-1])
        return torch.cat((table, table.gather(2, rows)), 2)

    nobody = torch.zeros_like(shadow, dtype=torch.bool)
    common = torch.cat((key_mask, nobody), 1)[:, None, None]
    own = shadow[..., None] == torch.arange(length, device=shadow.device)
    others = (shadow >= 0)[:, None].expand(-1, shadow.shape[1], -1)
    seen = torch.cat((key_mask[:, None] & ~own, others), 2)[:, None]
    allowed = torch.cat((common.expand(-1, -1, length, -1), seen), 2)
    scale = None if canvas.query_scale is None else with_shadow(canvas.query_scale)
    return Context(with_shadow(canvas.cos), with_shadow(canvas.sin), scale, allowed, common)


def trace_block(
    spec: Spec, layer: Layer, hidden: torch.Tensor, context: Context
) -> Iterator[tuple[str, torch.Tensor]]:
    """Run one block over hidden (B, S, D), stopping before each group of linears.

    Yields (group name, its input (B, S, in), turned but not rounded) in the order of the block's
    groups and at last ("out", the new hidden state); the inputs of experts are those of their own
    tokens, (tokens, in). What follows a yield runs with what `layer` holds by then.
    """
    hidden = yield from trace_attention(spec, layer, hidden, context)
    x = rms_norm(hidden, layer.tensors["mlp_norm"], spec.norm_eps)
    yield "out", hidden + (yield from trace_mlp(spec, layer, x))


def trace_attention(spec: Spec, layer: Layer, hidden: torch.Tensor, context: Context) -> Trace:
    """The first half of `trace_block`; returns the hidden state that the MLP is then added to."""
    into, out_of = ATTENTION
    x = layer.enter(into, rms_norm(hidden, layer.tensors["attn_norm"], spec.norm_eps))
    yield into.name, x
    x = layer.enter(out_of, attend(spec, layer, x, context))
    yield out_of.name, x
    return hidden + layer.leave(out_of, x)[0]


def attend(spec: Spec, layer: Layer, x: torch.Tensor, context: Context) -> torch.Tensor:
    """Attention of the normed x (B, S, D), up to what enters the output linear."""
    q, k, v = _operands(spec, layer, x, context)
    grid, kept = layer.attention, context.kept
    if kept is not None and grid is not None and grid.keeps_codes:
        q, k, v = rounded_operands(q, k, v, None, grid)
        k, v = kept.feed(k, v, codes=True)
        return rounded_attention(q, k, v, context.allowed, grid).transpose(1, 2).flatten(-2)
    if kept is not None:
        k, v = kept.feed(k, v, codes=grid is not None and grid.keeps_own)
    if grid is None or grid.is_float:
        out = F.scaled_dot_product_attention(
            q, k, v, context.allowed, enable_gqa=spec.heads != spec.kv_heads
        )
    else:
        out = quantized_attention(q, k, v, context.allowed, context.common, grid)
    return out.transpose(1, 2).flatten(-2)


def positioned_keys(spec: Spec, layer: Layer, x: torch.Tensor, context: Context) -> torch.Tensor:
    """Keys (B, kv heads, S, K) with their positions, not yet rounded."""
    return _operands(spec, layer, x, context)[1]


def weighted_values(
    spec: Spec, layer: Layer, x: torch.Tensor, context: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """The float factors of attention's last product: p (B, H, S, S) and v (B, kv heads, S, K)."""
    q, k, v = _operands(spec, layer, x, context)
    return probabilities(q, k, context.allowed), v


def _operands(
    spec: Spec, layer: Layer, x: torch.Tensor, context: Context
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, H, Q, K), k and v (B, kv heads, Q, K), with positions, not yet rounded."""
    flat = layer.leave(ATTENTION[0], x)
    q, k, v = (y.unflatten(-1, (-1, spec.head_dim)).transpose(1, 2) for y in flat)
    if spec.qk_norm:
        q = rms_norm(q, layer.tensors["q_norm"], spec.norm_eps)
        k = rms_norm(k, layer.tensors["k_norm"], spec.norm_eps)
    q, k = rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin)
    if context.query_scale is not None:
        q = q * context.query_scale.to(q.dtype)
    return q, k, v


def run_block(spec: Spec, layer: Layer, hidden: torch.Tensor, context: Context) -> torch.Tensor:
    """The hidden state (B, S, D) after one block."""
    *_, (_, after) = trace_block(spec, layer, hidden, context)
    return after
