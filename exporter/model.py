"""The float model in torch: one for all families, steered by `Spec`.

RMSNorm, rotary embedding on half-split pairs, grouped-query attention, optional q/k/v biases and
q/k norms, gated SiLU MLP, tied or untied head, full or block-causal attention. The same code runs
a quantized model: a `Layer` says what is rounded on the way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from exporter.families import Spec
from exporter.layer import Layer
from passes.activations.attention import probabilities, quantized_attention
from passes.base import LinearGroup

# linears of a block that share one input, in the order in which they run
GROUPS = (
    LinearGroup("attention input", ("q", "k", "v"), "attn_norm"),
    LinearGroup("attention output", ("o",), "v"),
    LinearGroup("mlp input", ("gate", "up"), "mlp_norm"),
    LinearGroup("mlp output", ("down",), "up"),
)
LINEARS = tuple(name for group in GROUPS for name in group.linears)


@dataclass(frozen=True)
class Context:
    """What all blocks of one forward share: rotary tables (B, 1, S, K/2) and who sees whom."""

    cos: torch.Tensor
    sin: torch.Tensor
    allowed: torch.Tensor | None  # bool (B, 1, 1 or S, S), None: everyone sees everyone


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last axis; squares are summed in fp32."""
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return (x.float() * scale).to(x.dtype) * weight


def rotary_tables(spec: Spec, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, fp32, of shape positions.shape + (K/2,)."""
    powers = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    frequencies = (1.0 / spec.rope_theta**powers).to(positions.device)
    angles = positions.float()[..., None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, H, S, K): channel i turns with channel i + K/2."""
    first, second = x.float().chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return turned.to(x.dtype)


def make_context(spec: Spec, key_mask: torch.Tensor) -> Context:
    """Tables and masks for key_mask bool (B, S), false at padding."""
    steps = torch.arange(key_mask.shape[1], device=key_mask.device)
    positions = steps.expand_as(key_mask)
    if spec.positions == "skip-padding":
        positions = (key_mask.long().cumsum(1) - 1).clamp_min(0)
    cos, sin = rotary_tables(spec, positions)
    allowed = None if bool(key_mask.all()) else key_mask[:, None, None, :]
    if spec.attention == "block-causal":
        assert spec.block_length is not None
        blocks = steps // spec.block_length
        causal = (blocks[None, :] <= blocks[:, None])[None, None]
        allowed = causal if allowed is None else causal & allowed
    return Context(cos[:, None], sin[:, None], allowed)


def trace_block(
    spec: Spec, layer: Layer, hidden: torch.Tensor, context: Context
) -> Iterator[tuple[str, torch.Tensor]]:
    """Run one block over hidden (B, S, D), stopping before each group of linears.

    Yields (group name, its input (B, S, in), turned but not rounded) in the order of GROUPS and at
    last ("out", the new hidden state). What follows a yield runs with what `layer` holds by then.
    """
    into, out_of, mlp_in, mlp_out = GROUPS
    x = layer.enter(into, rms_norm(hidden, layer.tensors["attn_norm"], spec.norm_eps))
    yield into.name, x
    x = layer.enter(out_of, attend(spec, layer, x, context))
    yield out_of.name, x
    hidden = hidden + layer.leave(out_of, x)[0]
    x = layer.enter(mlp_in, rms_norm(hidden, layer.tensors["mlp_norm"], spec.norm_eps))
    yield mlp_in.name, x
    gate, up = layer.leave(mlp_in, x)
    x = layer.enter(mlp_out, F.silu(gate) * up)
    yield mlp_out.name, x
    yield "out", hidden + layer.leave(mlp_out, x)[0]


def attend(spec: Spec, layer: Layer, x: torch.Tensor, context: Context) -> torch.Tensor:
    """Attention of the normed x (B, S, D), up to what enters the output linear."""
    q, k, v = _operands(spec, layer, x, context)
    if layer.attention is None or layer.attention.is_float:
        out = F.scaled_dot_product_attention(
            q, k, v, context.allowed, enable_gqa=spec.heads != spec.kv_heads
        )
    else:
        out = quantized_attention(q, k, v, context.allowed, layer.attention)
    return out.transpose(1, 2).flatten(-2)


def weighted_values(
    spec: Spec, layer: Layer, x: torch.Tensor, context: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """The float factors of attention's last product: p (B, H, S, S) and v (B, kv heads, S, K)."""
    q, k, v = _operands(spec, layer, x, context)
    return probabilities(q, k, context.allowed), v


def _operands(
    spec: Spec, layer: Layer, x: torch.Tensor, context: Context
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (B, H, S, K), k and v (B, kv heads, S, K), with positions, not yet rounded."""
    flat = layer.leave(GROUPS[0], x)
    q, k, v = (y.unflatten(-1, (-1, spec.head_dim)).transpose(1, 2) for y in flat)
    if spec.qk_norm:
        q = rms_norm(q, layer.tensors["q_norm"], spec.norm_eps)
        k = rms_norm(k, layer.tensors["k_norm"], spec.norm_eps)
    return rotate(q, context.cos, context.sin), rotate(k, context.cos, context.sin), v


def run_block(spec: Spec, layer: Layer, hidden: torch.Tensor, context: Context) -> torch.Tensor:
    """The hidden state (B, S, D) after one block."""
    *_, (_, after) = trace_block(spec, layer, hidden, context)
    return after
