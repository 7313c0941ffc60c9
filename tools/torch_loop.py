"""A plain torch loop for LLaDA, what a user has without this project: the yardstick of the bench.

The upstream algorithm (arXiv 2502.09992, low-confidence remasking): every call computes the logits
of the whole canvas, takes arg-max and softmax in the model's type, and commits the surest masks of
the current block. All weights stay in memory in one type.
"""

from dataclasses import dataclass

import torch

from exporter.checkpoint import Checkpoint
from exporter.layer import Layer
from exporter.model import Context, make_context, rms_norm, run_block


@dataclass(frozen=True)
class TorchModel:
    """A checkpoint of which everything is resident."""

    checkpoint: Checkpoint
    embed: torch.Tensor
    blocks: list[Layer]
    final_norm: torch.Tensor
    head: torch.Tensor

    def logits(self, canvas: torch.Tensor, context: Context) -> torch.Tensor:
        """Logits (B, S, V) of ids (B, S)."""
        spec, hidden = self.checkpoint.spec, self.embed[canvas]
        for layer in self.blocks:
            hidden = run_block(spec, layer, hidden, context)
        return rms_norm(hidden, self.final_norm, spec.norm_eps) @ self.head.T


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> TorchModel:
    """All weights in `dtype`."""
    blocks = [
        Layer({name: tensor.to(dtype) for name, tensor in checkpoint.block(index).items()})
        for index in range(checkpoint.spec.layers)
    ]
    outer = (checkpoint.tensor(name).to(dtype) for name in ("embed", "final_norm", "head"))
    embed, norm, head = outer
    return TorchModel(checkpoint, embed, blocks, norm, head)


@torch.no_grad()
def decode(
    model: TorchModel, prompt: list[int], length: int, block: int, steps: int, calls: int
) -> torch.Tensor:
    """The canvas (1, prompt + length) after the first `calls` of `steps` model calls."""
    spec = model.checkpoint.spec
    mask_id = spec.mask_id
    canvas = torch.tensor([prompt + [mask_id] * length])
    context = make_context(spec, torch.ones_like(canvas, dtype=torch.bool))
    steps_a_block = steps * block // length
    for call in range(min(calls, steps)):
        number, step = divmod(call, steps_a_block)
        end = len(prompt) + (number + 1) * block
        quota = block // steps_a_block + (step < block % steps_a_block)  # remainder first
        logits = model.logits(canvas, context)
        logits[..., mask_id] = -torch.inf
        best = logits.argmax(-1)
        surety = logits.softmax(-1).gather(-1, best[..., None])[..., 0]
        surety = surety.where(canvas == mask_id, -torch.inf)
        surety[:, end:] = -torch.inf
        chosen = surety.topk(quota).indices
        canvas.scatter_(1, chosen, best.gather(1, chosen))
    return canvas
