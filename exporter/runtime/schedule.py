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
    """Positions that are filled together."""

    members: Bools  # [B, L]
    size: Ints  # [B] tokens


def blocks(masked: Bools, prompt_length: int, settings: Settings) -> list[Block]:
    """The blocks of a canvas in decoding order; `masked` [B, L] is it before the first call.

    Canvas samplers have one block, all of it. Block samplers fill the blanks of the prompt first,
    in each row `block_length` of them at a time from the left, then the generated region.
    """
    blank = masked.copy()
    blank[:, prompt_length:] = False
    blanks = blank.sum(1)
    if settings.by_canvas:
        return [Block(np.ones_like(masked), settings.gen_length + blanks)]
    size, columns = settings.block_length, np.arange(masked.shape[1])
    chunk = (np.cumsum(blank, axis=1) - 1) // size
    found = []
    for number in range(-(-int(blanks.max(initial=0)) // size)):
        members = blank & (chunk == number)
        found.append(Block(members, members.sum(1)))
    for start in range(prompt_length, masked.shape[1], size):
        inside = np.broadcast_to((columns >= start) & (columns < start + size), masked.shape)
        found.append(Block(inside, inside.sum(1)))
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
