"""What the rule of the sampler takes from the candidates of each row."""

from __future__ import annotations

import numpy as np

from .candidates import Candidates, doubt_of_held
from .plan import Call, Generators
from .rules import passing, revoked, surest
from .samplers import Offer
from .session import Bools, Ints, Reductions
from .task import Task

Commit = tuple[int, int, int]  # (row, position, id)
Edit = tuple[int, int, int, int]  # (row, position, id before, id after)
Choice = tuple[list[Commit], list[Edit]]


def select(
    offered: Candidates,
    found: Reductions,
    call: Call,
    window: Ints,
    task: Task,
    rngs: Generators,
    whole: Bools,
) -> Choice:
    """Masks to fill and tokens to replace, ascending. Rows that are `whole` [B] are filled."""
    commits: list[Commit] = []
    edits: list[Edit] = []
    settings, masks = task.settings, task.masked()
    doubt = offered.doubt
    positions = window[offered.columns]
    is_mask = masks[offered.rows, positions]
    if settings.rule.held:
        held = doubt_of_held(found)[offered.rows, offered.columns]
        doubt = np.where(is_mask, doubt, held)
    for row in sorted(set(offered.rows.tolist())):  # np.unique would load numpy.ma: 30 ms
        first, last = np.searchsorted(offered.rows, [row, row + 1])
        own = slice(first, last)
        offer = Offer(
            doubt[own],
            positions[own],
            len(doubt[own]) if call.quota is None else int(call.quota[row]),
            settings,
            rngs[row],
        )
        if whole[row]:
            fill, replace = np.flatnonzero(is_mask[own]), _nothing()
        elif call.most_edits is not None:
            fill, replace = _reconsidered(offer, is_mask[own], int(call.most_edits[row]))
        elif settings.rule.held:
            fill, replace = _replanned(offer, is_mask[own])
        else:
            fill, replace = _edited(offer, is_mask[own], offered.ids[own], task.canvas[row])
        ids = offered.ids[own]
        for n in np.sort(fill):
            commits.append((int(row), int(offer.positions[n]), int(ids[n])))
        for n in np.sort(replace):
            at = int(offer.positions[n])
            new = task.model.mask_id if settings.rule.held else int(ids[n])
            edits.append((int(row), at, int(task.canvas[row, at]), new))
    return commits, edits


def _edited(offer: Offer, is_mask: Bools, ids: Ints, canvas: Ints) -> tuple[Ints, Ints]:
    """Masks by the sampler's rule; tokens whose candidate is another with p > editing_threshold."""
    masks = np.flatnonzero(is_mask)
    fill = masks
    if len(masks):
        fill = masks[offer.settings.rule.take(offer.of(masks))]
    sure = passing(offer.doubt, offer.settings.editing_threshold, strict=True)
    return fill, np.flatnonzero(~is_mask & sure & (ids != canvas[offer.positions]))


def _reconsidered(offer: Offer, is_mask: Bools, most: int) -> tuple[Ints, Ints]:
    """WINO: masks by the sampler's rule; where these are several, unsure tokens are masks again."""
    masks, tokens = np.flatnonzero(is_mask), np.flatnonzero(~is_mask)
    fill = masks[offer.settings.rule.take(offer.of(masks))]
    if len(fill) < 2:
        return fill, _nothing()
    return fill, tokens[revoked(offer.doubt[tokens], offer.settings.keep_threshold, most)]


def _replanned(offer: Offer, is_mask: Bools) -> tuple[Ints, Ints]:
    """P2 (arXiv 2502.03540): the surest stand, be they filled now or tokens; the rest are masks."""
    stands = np.zeros(len(offer.doubt), np.bool_)
    stands[surest(offer.doubt, offer.quota)] = True
    return np.flatnonzero(is_mask & stands), np.flatnonzero(~is_mask & ~stands)


def _nothing() -> Ints:
    return np.zeros(0, np.int64)
