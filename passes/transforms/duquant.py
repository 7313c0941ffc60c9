"""DuQuant (arXiv 2406.01721): rotations that are built on the outliers, and a permutation between.

The input of each group is turned in runs of `block` channels, by one rotation for all of them as in
the code of QDLM; then channels are dealt out so that all runs hold outliers of about one size; then
it is turned again. Smoothing, which the paper puts first, is a pass of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from passes.base import Block, LinearGroup, Stats
from passes.transforms.online import Permutation, Rotation
from passes.transforms.sample import sample_tokens
from passes.transforms.smooth import channel_maxima, crest, input_maxima
from passes.transforms.turn import turn


@dataclass(frozen=True)
class DuQuant:
    """Turn the inputs of every group whose inputs are to be rounded.

    Rotations are searched on a sample of calibration tokens, the permutation goes by the channel
    maxima over all of them. Where the code averages inputs over calibration samples, position by
    position, this takes single tokens: sequences here differ in length, and a mean hides outliers.
    """

    block: int = 128  # channels of a run, or the largest power of two that divides all of them
    steps: int = 256  # rotations that the greedy search multiplies
    tokens: int = 128  # that the search looks at
    seed: int = 0  # of the random part of the rotations

    def __post_init__(self) -> None:
        if self.block < 1 or self.block & (self.block - 1):
            raise ValueError(f"block is a power of two, not {self.block}")
        if self.steps < 0 or self.tokens < 1:
            raise ValueError(f"steps must not be negative, tokens positive: {self!r}")

    def __call__(self, block: Block, /) -> Stats:
        """Stats, means over the groups: largest over mean channel maximum of the sample, before
        (`crest`) and after (`turned_crest`).
        """
        groups = [group for group in block.groups if group.activation is not None]
        crests = [self.turn(block, group) for group in groups]
        count = max(len(groups), 1)
        return {
            "groups": len(groups),
            "crest": sum(before for before, _ in crests) / count,
            "turned_crest": sum(after for _, after in crests) / count,
        }

    def turn(self, block: Block, group: LinearGroup) -> tuple[float, float]:
        """Turn, permute and turn again the input of one group; the sample's crests."""
        x = block.team.join(sample_tokens(block, group, self.tokens)[0])
        size = min(self.block, x.shape[1] & -x.shape[1])
        first = self.search(x, size)
        turn(block, group, first)
        deal = Permutation(zigzag(input_maxima(block, group), size))
        turn(block, group, deal)
        dealt = deal(first(x))
        second = self.search(dealt, size)
        turn(block, group, second)
        return crest(channel_maxima(x)), crest(channel_maxima(second(dealt)))

    def search(self, x: Tensor, size: int) -> Rotation:
        """The rotation of runs of `size` channels that is found for a sample x (T, in)."""
        base = base_rotation(size, self.seed).to(x.device)
        return Rotation(right=greedy_rotation(x.reshape(-1, size), base, self.steps).float())


def greedy_rotation(runs: Tensor, base: Tensor, steps: int) -> Tensor:
    """An orthogonal matrix (b, b) fp64 that makes the largest |entry| of runs (N, b) small.

    Each step finds the largest entry and turns by `base` (b, b) fp64 with its first channel and
    that of the entry exchanged. The result is the product of the first k of them that leaves the
    least maximum, k = 0 to `steps` (section 3.2): never a larger one than before.
    """
    width = len(base)
    product = best = torch.eye(width, dtype=base.dtype, device=base.device)
    turned = runs.to(base.dtype)
    least = largest = turned.abs().max() if len(turned) else base.new_zeros(())
    for _ in range(steps if largest > 0 else 0):
        channel = int(turned.abs().argmax()) % width
        swap = torch.arange(width, device=base.device)
        swap[0], swap[channel] = channel, 0
        step = base[swap][:, swap]
        turned, product = turned @ step, product @ step
        largest = turned.abs().max()
        if largest < least:
            least, best = largest, product
    return best


def base_rotation(width: int, seed: int) -> Tensor:
    """A random orthogonal matrix (width, width) fp64 whose first row is uniform.

    diag(1, a random one) times the reflection that brings the first channel to all channels alike.
    """
    draw = torch.Generator().manual_seed(seed)
    gauss = torch.randn(width - 1, width - 1, generator=draw, dtype=torch.float64)
    mix = torch.eye(width, dtype=torch.float64)
    mix[1:, 1:] = torch.linalg.qr(gauss).Q
    across = torch.full((width,), -(width**-0.5), dtype=torch.float64)
    across[0] += 1  # first channel minus uniform direction
    length = across.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    reflection = torch.eye(width, dtype=torch.float64) - 2 * torch.outer(across, across) / length
    return mix @ reflection


def zigzag(maxima: Tensor, size: int) -> Tensor:
    """An order (n,) that deals channels by falling maximum, forth and back, over n / size runs.

    Each run gets one of the largest, one of the next, and so on (section 3.2).
    """
    deals = maxima.argsort(descending=True, stable=True).view(size, -1)
    deals[1::2] = deals[1::2].flip(1)
    return deals.T.flatten()
