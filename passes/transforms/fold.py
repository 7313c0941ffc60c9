"""Equivalent scaling: divide the channels of a group's input by s, multiply the weights by s.

The division costs nothing at run time: it goes into what makes the input, channel by channel.
That is the gain of a norm; the rows of `up`, since a gated MLP is linear in it; or the rows of `v`,
since attention mixes tokens and not channels.
"""

import torch
from torch import Tensor

from passes.base import Block, LinearGroup


def fold_scale(block: Block, group: LinearGroup, s: Tensor) -> None:
    """Divide the input of `group` by s (in,) fp32 and multiply the columns of its weights by s.

    To be done before the group's input is transformed and before the group or its source is
    rounded. ValueError if s is not positive and finite, differs between query heads that share a
    value head (see `tie`), if the values that it would scale have their grid already, or if the
    block does not say what makes the input.
    """
    if not (torch.isfinite(s).all() and (s > 0).all()):
        raise ValueError(f"{block.name}, {group.name}: scales must be positive and finite")
    grid = block.attention()
    if group.source == "v" and grid is not None and grid.v_scale is not None:
        raise ValueError(f"{block.name}, {group.name}: values are on a grid already")
    if not torch.equal(tie(block, group, s), s):
        raise ValueError(f"{block.name}, {group.name}: heads that share values differ in scale")
    own = s.view(sharing(block, group))[:, 0].flatten()  # of each channel of the source
    linear = is_linear(block, group.source)
    if linear:
        block.set(group.source, block.weight(group.source) / own[:, None])
    name = f"{group.source}_bias" if linear else group.source
    vector = block.vector(name)
    if vector is not None:
        block.set(name, vector / own)
    elif not linear:
        raise ValueError(f"{block.name}, {group.name}: no `{name}` to fold scales into")
    for reader in group.linears:
        block.set(reader, block.weight(reader) * s)


def tie(block: Block, group: LinearGroup, statistic: Tensor) -> Tensor:
    """A statistic (in,) of the input of `group`, such that scales made from it can be folded.

    It becomes the largest over the query heads that share a value head.
    """
    shared = statistic.view(sharing(block, group))
    return shared.amax(1, keepdim=True).expand_as(shared).flatten()


def sharing(block: Block, group: LinearGroup) -> tuple[int, int, int]:
    """The input channels of `group` as (n, m, c): m runs of c channels come from the same c.

    (kv heads, query heads that share one, K) behind grouped-query attention, else (1, 1, in).
    """
    width, heads = block.weight(group.linears[0]).shape[1], block.heads
    if not is_linear(block, group.source) or len(block.weight(group.source)) == width:
        return 1, 1, width
    return heads.kv_heads, heads.heads // heads.kv_heads, heads.width


def is_linear(block: Block, name: str) -> bool:
    """Whether `name` is a linear of the block, and no norm."""
    return any(name in group.linears for group in block.groups)
