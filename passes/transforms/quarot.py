"""QuaRot (arXiv 2404.00456): Hadamard rotations that spread outliers over all channels.

Four rotations, each of which leaves the model's function as it is: of the residual stream, into the
weights; of the values' heads and the input of the output projection; of the input of the MLP's last
linear; of queries and keys. Norms divide by a root mean square and subtract no mean, so they take a
turned residual stream as it comes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from passes.activations.attention import FLOAT
from passes.base import Block, LinearGroup, Stats
from passes.transforms.hadamard import hadamard, hadamard_dense, hadamard_split
from passes.transforms.online import Rotation
from passes.transforms.turn import fed_by, turn, turn_weights


@dataclass(frozen=True)
class ResidualRotation:
    """Q = diag(signs) H, which the residual stream h (…, D) of a whole model is turned by: h Q.

    Embeddings and linears that write to the stream end in Q, linears that read it begin by undoing
    it. Which signs are drawn matters: SpinQuant (arXiv 2405.16406) saw random rotations differ by
    up to 13 points of accuracy, so the seed is on record, and several should be tried.
    """

    width: int  # D
    seed: int = 0

    def rotate_rows(self, rows: Tensor) -> Tensor:
        """rows Q for embeddings (N, D), or for the bias (D,) of a linear that writes."""
        signs, turn = self.factors(rows.device)
        return turn(rows.double() * signs).float()

    def rotate_input(self, weight: Tensor, gain: Tensor | None = None) -> Tensor:
        """W diag(gain) Q for a linear (out, D) that reads, behind a norm of `gain` (D,).

        The norm is then left without a gain: its gain is 1.
        """
        scaled = weight.double() if gain is None else weight.double() * gain.double()
        return self.rotate_rows(scaled)

    def rotate_output(self, weight: Tensor) -> Tensor:
        """Q^T W for a linear (D, in) that writes."""
        return self.rotate_rows(weight.T).T.contiguous()

    def factors(self, device: torch.device) -> tuple[Tensor, Rotation]:
        """The signs (D,) and H in fp64: a rotation of fp32 would be repeated in every weight."""
        draw = torch.Generator().manual_seed(self.seed)
        signs = torch.randint(0, 2, (self.width,), generator=draw).double() * 2 - 1
        return signs.to(device), hadamard(self.width, torch.float64).to(str(device))


@dataclass(frozen=True)
class RotateHeads:
    """Turn values within each head, in the weights, and across heads before the output projection.

    Both together are one Hadamard rotation of the projection's input. The part within a head comes
    out of the value projection, so a quantized value cache is turned too.
    """

    def __call__(self, block: Block, /) -> Stats:
        """Stats: `channels` of the output projection's input."""
        heads, group = block.heads, fed_by(block, "v")
        value, bias = block.weight("v"), block.vector("v_bias")
        within = Rotation(right=hadamard_dense(heads.width).to(value.device))
        block.set("v", within(value.T).T.contiguous())
        if bias is not None:
            block.set("v_bias", within(bias))
        turn_weights(block, group, within)
        if heads.heads > 1:
            turn(block, group, Rotation(left=hadamard_dense(heads.heads).to(value.device)))
        return {"channels": heads.heads * heads.width}


@dataclass(frozen=True)
class RotateDown:
    """Turn the input of the MLP's last linear, where massive outliers sit, while the model runs."""

    def __call__(self, block: Block, /) -> Stats:
        """Stats: `channels` that are turned, at a `cost` of as many products each; the most of
        them where a block has several such linears, as with experts.
        """
        widths = [self.turn(block, group) for group in gated_outputs(block)]
        widest = max(widths)
        return {"channels": widest, "cost": sum(hadamard_split(widest))}

    def turn(self, block: Block, group: LinearGroup) -> int:
        """Turn the input of one linear; its width."""
        weight = block.weight(group.linears[0])
        turn(block, group, hadamard(weight.shape[1]).to(str(weight.device)))
        return weight.shape[1]


def gated_outputs(block: Block) -> list[LinearGroup]:
    """The last linear of the MLP, or of each expert: the groups behind a linear other than `v`."""
    linears = {name for group in block.groups for name in group.linears} - {"v"}
    return [group for group in block.groups if group.source in linears]


@dataclass(frozen=True)
class RotateQueriesKeys:
    """Turn queries and keys by one Hadamard matrix a head, behind the rotary embedding.

    Their products stay. Only where one of them is to be rounded: what their grids are must have
    been said before.
    """

    def __call__(self, block: Block, /) -> Stats:
        """Stats: `rotated`, 1 or 0."""
        grid = block.attention()
        if grid is None or min(grid.q_bits, grid.k_bits) == FLOAT:
            return {"rotated": 0}
        device = block.weight(block.groups[0].linears[0]).device
        rotation = hadamard_dense(block.heads.width).to(device)
        block.quantize_attention(replace(grid, rotation=rotation))
        return {"rotated": 1}
