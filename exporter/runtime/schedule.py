"""How many tokens each call commits, and where: quotas, Dream's time steps, blocks.

Everything is counted for each row of a batch on its own; `steps` [B] may differ between rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .session import Bools, Ints
from .settings import Settings

Floats32 = npt.NDArray[np.float32]


def even_split(masks: Ints, steps: Ints) -> Ints:
    """Split masks [B] over the row's calls: [B, most steps], remainder first (LLaDA)."""
    base, remainder = np.divmod(masks, steps)
    call = np.arange(steps.max())
    quota = base[:, None] + (call < remainder[:, None])
    return np.where(call < steps[:, None], quota, 0)


def dream_times(steps: int, eps: float) -> Floats32:
    """Dream's times t [steps + 1], from 1 down to `eps`, as float32 bits of torch.linspace.

    torch computes start + step * i below the middle and end - step * (n - i) above, and rounds once
    (fused multiply-add); a float64 product of a float32 and a small integer is exact. In float64
    the schedule would commit other numbers of tokens in a few calls.
    """
    start, end = np.float32(1), np.float32(eps)
    step = np.float64((end - start) / np.float32(steps))
    i = np.arange(steps + 1)
    left = np.float64(start) + step * i
    right = np.float64(end) - step * (steps - i)
    return np.asarray(np.where(i < (steps + 1) // 2, left, right), np.float32)


def dream_shares(steps: Ints, eps: float) -> Floats32:
    """The part 1 - t[i+1] / t[i] of its masks that a row commits in call i: [B, most steps].

    1 in the row's last call, 0 after it.
    """
    shares = np.zeros((len(steps), steps.max()), np.float32)
    for row, count in enumerate(steps):
        times = dream_times(int(count), eps)
        shares[row, :count] = np.float32(1) - times[1:] / times[:-1]
        shares[row, count - 1] = 1
    return shares


def dream_quota(masks: Ints, share: Floats32) -> Ints:
    """Tokens to commit of the masks [B] that are left, in float32 as upstream."""
    return (masks.astype(np.float32) * share).astype(np.int64)


@dataclass(frozen=True)
class Block:
    """Positions that are filled together; a row that has no such block has no members."""

    members: Bools  # [B, L]
    size: Ints  # [B] tokens to fill


def blocks(
    masked: Bools, prompt_length: int, settings: Settings, causal: tuple[Bools, int] | None = None
) -> list[Block]:
    """The blocks of a canvas in decoding order; `masked` [B, L] is it before the first call.

    Canvas samplers have one block, all of it. Block samplers fill the blanks of the prompt first,
    in each row `block_length` of them at a time from the left, then the generated region.
    Block-causal models, with (key mask [B, L], their block length) in `causal`, have their own
    blocks.
    """
    blank = masked.copy()
    blank[:, prompt_length:] = False
    if settings.by_canvas:
        return [Block(np.ones_like(masked), settings.gen_length + blank.sum(1))]
    if causal is not None:
        return _causal_blocks(masked, *causal)
    return _blanks(blank, settings.block_length) + _generated(
        masked.shape, prompt_length, settings.block_length
    )


def _blanks(blank: Bools, size: int) -> list[Block]:
    chunk = (np.cumsum(blank, axis=1) - 1) // size
    chunks = [blank & (chunk == n) for n in range(-(-int(blank.sum(1).max(initial=0)) // size))]
    return [Block(members, members.sum(1)) for members in chunks]


def _generated(shape: tuple[int, ...], prompt_length: int, size: int) -> list[Block]:
    columns, found = np.arange(shape[1]), []
    for start in range(prompt_length, shape[1], size):
        inside = np.broadcast_to((columns >= start) & (columns < start + size), shape)
        found.append(Block(inside, inside.sum(1)))
    return found


def _causal_blocks(masked: Bools, key_mask: Bools, size: int) -> list[Block]:
    """In each row every `size` tokens from its first real one on; from the first mask to the last.

    The n-th blocks of all rows are filled together, wherever they stand.
    """
    columns = np.arange(masked.shape[1])
    first = key_mask.argmax(1)[:, None]
    number = np.where(key_mask, (columns - first) // size, -1)  # [B, L]
    opened = masked.any(1)
    start = np.where(opened, np.take_along_axis(number, masked.argmax(1)[:, None], 1)[:, 0], 0)
    last = np.where(masked, number, -1).max(1, initial=-1)
    found = []
    for n in range(int((last - start + 1)[opened].max(initial=0))):
        members = (number == (start + n)[:, None]) & (start + n <= last)[:, None]
        found.append(Block(members, (members & masked).sum(1)))
    return found


def common_blocks(masked: Bools, key_mask: Bools, prompt_length: int, size: int) -> list[Block]:
    """In all rows every `size` tokens from the end of the prompt on, in both directions, from the
    first that holds a mask to the last. Models that commit causally are so fed.
    """
    columns = np.arange(masked.shape[1])
    number = (columns - prompt_length) // size
    found = []
    for n in np.unique(number[masked.any(0)]):
        members = (number == n) & key_mask
        found.append(Block(members, (members & masked).sum(1)))
    return found


def block_steps(block: Block, blanks: Ints, settings: Settings) -> Ints:
    """Calls [B] for one block of a quota sampler, at least 1.

    `steps` is meant for the generated region and gives the tokens a call, for the `blanks` [B] of
    the prompt as well. Without a generated region it is meant for the blanks.
    """
    if settings.steps is None:
        return np.maximum(block.size, 1)
    whole = np.maximum(settings.gen_length or blanks, 1)
    return np.maximum(-(-block.size * settings.steps // whole), 1)


def even_block_steps(block_length: int, settings: Settings) -> int:
    """Calls for one block of SDAR and LLaDA2.0, where `steps` is meant for a block.

    LLaDA2.0 takes no more than gen_length // minimal_topk, to commit so many tokens a call.
    """
    steps = settings.steps or block_length
    if "minimal_topk" in settings.rule.reads and settings.minimal_topk > 1:
        steps = min(steps, settings.gen_length // settings.minimal_topk)
    return max(1, steps)
