"""TMAS of DLLMQuant (arXiv 2508.14090): draw calibration states from all phases of decoding.

Early and late phases get more than their share, because token distributions change most there. The
paper does not say what its four bins are; both plausible readings can be chosen.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from passes.base import Stats
from passes.calibrate.states import State, digest


@dataclass(frozen=True)
class Tmas:
    """Temporal-Mask Adaptive Sampling: `samples` states, shared out over bins of the trajectory."""

    samples: int = 128
    quotas: tuple[float, ...] = (0.3, 0.2, 0.2, 0.3)  # from all masked to all visible
    bins: Literal["mask-ratio", "trajectory"] = "mask-ratio"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.quotas or min(self.quotas) < 0 or not any(self.quotas):
            raise ValueError(f"samples and quotas must be positive: {self!r}")

    def __call__(self, pool: Sequence[State], /) -> tuple[list[State], Stats]:
        """Draw from `pool`; the choice depends on what it holds and the seed, not on its order.

        States come back by (prompt, step). What a bin cannot fill is shared out over the others in
        proportion to their quota. Stats: `wanted_b`, `available_b`, `taken_b` for each bin b,
        `shortage` (places that the bins could not fill themselves), `missing` (left empty).
        """
        visited = (state for state in pool if not state.finished)
        ordered = sorted(visited, key=lambda state: (state.prompt, state.step, digest([state])))
        members = self.sort_into_bins(ordered)
        wanted = largest_remainder(self.samples, self.quotas)
        available = [len(bin_members) for bin_members in members]
        taken = share_out(wanted, available, self.quotas)
        chosen: set[int] = set()
        for number, (bin_members, count) in enumerate(zip(members, taken, strict=True)):
            draw = random.Random(f"{self.seed} {number}")
            chosen.update(stratified(ordered, bin_members, draw)[:count])
        stats: Stats = {}
        for name, counts in (("wanted", wanted), ("available", available), ("taken", taken)):
            stats |= {f"{name}_{number}": count for number, count in enumerate(counts)}
        short = (max(0, w - a) for w, a in zip(wanted, available, strict=True))
        stats |= {"shortage": sum(short), "missing": self.samples - len(chosen)}
        return [ordered[index] for index in sorted(chosen)], stats

    def sort_into_bins(self, states: Sequence[State]) -> list[list[int]]:
        """Indices of the states of each bin: `floor(n * progress)`, the end included in the last.

        Progress is 1 - mask ratio, or the share of the prompt's steps (1 + the largest in
        the pool) that went before.
        """
        steps: dict[int, int] = {}
        for state in states:
            steps[state.prompt] = max(steps.get(state.prompt, 0), state.step + 1)
        count = len(self.quotas)
        members: list[list[int]] = [[] for _ in range(count)]
        for index, state in enumerate(states):
            by_step = state.step / steps[state.prompt]
            progress = by_step if self.bins == "trajectory" else 1 - state.mask_ratio
            members[min(int(count * progress), count - 1)].append(index)
        return members


def largest_remainder(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to `shares` (Hamilton's method).

    Of equal remainders the first is served first. Shares are read as the decimals they print as, so
    that ties are exact.
    """
    exact = [Fraction(str(share)) for share in shares]
    ideal = [total * share / sum(exact) for share in exact]
    counts = [math.floor(value) for value in ideal]
    by_remainder = sorted(range(len(ideal)), key=lambda index: counts[index] - ideal[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def share_out(
    wanted: Sequence[int], available: Sequence[int], quotas: Sequence[float]
) -> list[int]:
    """How many to take from each bin: `wanted` where there is enough.

    A shortage goes to the bins that have more, in proportion to quota, until it is met or all are
    empty. Bins of quota 0 are drawn from last, evenly.
    """
    taken = [min(pair) for pair in zip(wanted, available, strict=True)]
    target = min(sum(wanted), sum(available))
    while sum(taken) < target:
        room = [have - took for have, took in zip(available, taken, strict=True)]
        shares = [quota if left else 0.0 for quota, left in zip(quotas, room, strict=True)]
        if not any(shares):
            shares = [1.0 if left else 0.0 for left in room]
        extra = largest_remainder(target - sum(taken), shares)
        taken = [took + min(pair) for took, *pair in zip(taken, extra, room, strict=True)]
    return taken


def stratified(states: Sequence[State], members: Sequence[int], draw: random.Random) -> list[int]:
    """`members` in drawing order, evenly over (prompt, block).

    Each stratum is shuffled, and they take turns in a shuffled order: of any first k, two strata
    that are not used up differ by at most one.
    """
    strata: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in members:
        strata[states[index].prompt, states[index].block].append(index)
    turns = list(strata.values())  # in the order of the states, which is fixed
    draw.shuffle(turns)
    for stratum in turns:
        draw.shuffle(stratum)
    rounds = range(max(map(len, turns), default=0))
    return [stratum[turn] for turn in rounds for stratum in turns if turn < len(stratum)]
