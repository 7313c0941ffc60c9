"""A fixed random sample of the calibration tokens that enter a group of linears."""

import torch
from torch import Tensor

from passes.base import Block, LinearGroup, share


def sample_tokens(block: Block, group: LinearGroup, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` tokens over the whole team: inputs x (T, in) and token weights w (T,), fp32.

    Each token that weighs anything has the same chance; tokens keep their order. A process returns
    its share, of its own tokens: fewer if it has fewer. The same inputs give the same sample.
    """
    part = share(count, block.team)
    mine = part.stop - part.start
    draw = torch.Generator().manual_seed(block.team.rank)
    like = block.weight(group.linears[0])
    x, w, rank = like.new_zeros(0, like.shape[1]), like.new_zeros(0), torch.zeros(0)
    for new, weights in block.inputs(group):
        seen = weights != 0
        x, w = torch.cat((x, new[seen])), torch.cat((w, weights[seen]))
        rank = torch.cat((rank, torch.rand(int(seen.sum()), generator=draw)))
        keep = rank.argsort(stable=True)[:mine].sort().values
        x, w, rank = x[keep.to(x.device)], w[keep.to(w.device)], rank[keep]
    return x, w
