"""A trainable LLaDA whose parameters carry the upstream tensor names: its state is a checkpoint.

Architecture: Nie et al., "Large Language Diffusion Models" (arXiv 2502.09992), a Llama block
without causal mask. With a block-causal one (arXiv 2503.09573) queries and keys are normed too, as
in SDAR. Rotary pairs are the two halves of a head; norms and rotation are in fp32.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

ROPE_THETA = 10000.0
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of a network."""

    width: int = 192
    layers: int = 4
    heads: int = 3
    mlp: int = 576
    vocab: int = 64
    block: int | None = None  # tokens of a block that sees itself and those before; None: full


class RmsNorm(nn.Module):
    """x / rms(x) over the last axis, in fp32, times a weight in the type of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = x.float()
        normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + NORM_EPS)
        return self.weight * normed.to(x.dtype)


class Block(nn.Module):
    """Attention over all positions, then a gated MLP, each on normed input and added back."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm = RmsNorm(shape.width)
        self.ff_norm = RmsNorm(shape.width)
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_out = nn.Linear(shape.width, shape.width, bias=False)
        self.ff_proj = nn.Linear(shape.width, shape.mlp, bias=False)  # the gate
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.ff_out = nn.Linear(shape.mlp, shape.width, bias=False)
        if shape.block is not None:
            self.q_norm = RmsNorm(shape.width // shape.heads)
            self.k_norm = RmsNorm(shape.width // shape.heads)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, visible: torch.Tensor | None
    ) -> torch.Tensor:
        normed = self.attn_norm(x)
        q, k, v = (self._split(p(normed)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if visible is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = functional.scaled_dot_product_attention(q, k, v, visible)
        x = x + self.attn_out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        normed = self.ff_norm(x)
        hidden: torch.Tensor = functional.silu(self.ff_proj(normed)) * self.up_proj(normed)
        out: torch.Tensor = x + self.ff_out(hidden)
        return out

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        return x.view(rows, length, self.heads, width // self.heads).transpose(1, 2)  # (B, H, T, K)


class Network(nn.Module):
    """Token ids (B, T) → logits (B, T, V)."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        if shape.width % (2 * shape.heads):
            raise ValueError(f"{shape.heads} heads of even width do not divide {shape.width}")
        self.shape = shape
        transformer = {
            "wte": nn.Embedding(shape.vocab, shape.width),
            "blocks": nn.ModuleList(Block(shape) for _ in range(shape.layers)),
            "ln_f": RmsNorm(shape.width),
            "ff_out": nn.Linear(shape.width, shape.vocab, bias=False),
        }
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(transformer)})
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """Normal with deviation 0.02; what writes to the residual less, by 1/√(2 layers)."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                writes = ".blocks." in name and name.endswith(("attn_out.weight", "ff_out.weight"))
                deviation = 0.02 / ((2 * self.shape.layers) ** 0.5 if writes else 1.0)
                nn.init.normal_(weight, std=deviation, generator=generator)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts = self.model["transformer"]
        assert isinstance(parts, nn.ModuleDict)
        cos, sin = rotary_tables(ids.shape[1], self.shape.width // self.shape.heads, ids.device)
        visible = None if self.shape.block is None else block_causal(ids.shape[1], self.shape.block)
        x = parts["wte"](ids)
        for block in parts["blocks"].children():
            x = block(x, cos, sin, visible)
        logits: torch.Tensor = parts["ff_out"](parts["ln_f"](x))
        return logits


def block_causal(length: int, block: int) -> torch.Tensor:
    """Who sees whom, bool (T, T): position i sees j where ⌊j / block⌋ ≤ ⌊i / block⌋."""
    number = torch.arange(length) // block
    return number <= number[:, None]


def rotary_tables(
    length: int, head_width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, K) of position × θ^(-2i/K), the K/2 angles written twice."""
    powers = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    angles = torch.arange(length, device=device)[:, None] * ROPE_THETA**-powers  # (T, K/2)
    both = torch.cat([angles, angles], dim=-1)
    return both.cos(), both.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns each pair (i, i + K/2) of x (…, T, K) by its angle, in fp32."""
    low, high = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)
