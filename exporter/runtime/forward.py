"""One model call: which rows and positions are fed, and what comes back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .bundle import ModelFacts
from .candidates import scale, wanted
from .growth import ends
from .plan import Call
from .session import Array, Bools, Cache, Ints, Reductions, Session
from .settings import Settings
from .shadow import at_rows, rows_for, shadow_of
from .task import Task

SUPPRESSED = -1e4  # added to a logit that must not count; exp() of it is 0
CHUNK = 512  # positions of a prompt that are fed together before the first block


class Feeder:
    """Feeds the canvas of a task to a model, as much of it as the cache does not know yet.

    Without a cache only rows that a call may change are fed: the whole canvas, of block-causal
    models up to the end of their block. With one, all rows are. `prefix` and `dual` feed the whole
    canvas in the first call of a block, then the block with or without what stands behind it.
    `exact` feeds everything whose keys and values are not final: a block is stored together with
    the first call of the next, the prompt with the first call, the longest part of it before that.
    Of models that commit causally final is what a causal call fed: that which seeds a block.
    """

    def __init__(self, session: Session, task: Task) -> None:
        self._session, self._task = session, task
        self._guided = task.settings.cfg_scale > 0
        self._cache: Cache | None = None
        if task.settings.cache != "none":
            rows, length = task.canvas.shape
            self._cache = session.new_cache(rows * (2 if self._guided else 1), length)
        self._refreshed = -1  # the block for which the whole canvas was fed last
        self._first = task.key_mask.argmax(1)
        self._final = self._first.copy()  # [B] what stands before it is final in the cache

    def __call__(self, call: Call, window: Ints) -> tuple[Reductions, int, int]:
        """Reductions [B, W] at the positions `window`, and the range that was fed.

        Rows that were not fed hold -1 and infinity.
        """
        start, stop = self._range(call)
        rows = np.arange(len(self._task.canvas))
        if self._cache is None:
            rows = np.flatnonzero(call.rows)
        if self._task.settings.rule.shadowed:
            found = self._with_shadow(call, rows, window)
        else:
            found = self._feed(rows, start, stop, window, causal_call(self._task, call))
        spread = {n: _spread(array, rows, len(self._task.canvas)) for n, array in found.items()}
        return spread, start, stop

    def _range(self, call: Call) -> tuple[int, int]:
        """What is fed. Feeds the chunks of a long prompt that go before it."""
        task, members = self._task, call.members
        assert members is not None
        rows = call.rows
        fed = np.flatnonzero(members[rows].any(0))
        lo, hi = int(fed[0]), int(fed[-1]) + 1
        if call.seeds:
            hi = int(members[rows].argmax(1).max())
        if task.causal and self._cache is None:
            return 0, hi
        if task.commits_causally:
            return self._committed(call, lo, hi)
        if task.causal:
            return self._exact(call, members, lo, hi)
        length = int(ends(task)[rows].max()) if self._cache is None else task.canvas.shape[1]
        if self._cache is None or call.block != self._refreshed:
            self._refreshed = call.block
            return 0, length
        before = lo - 1 if task.model.shift and lo > 0 else lo  # its row predicts position lo
        return before, hi if task.settings.cache == "dual" else length

    def _exact(self, call: Call, members: Bools, lo: int, hi: int) -> tuple[int, int]:
        rows = call.rows
        every, none = np.arange(len(rows)), np.zeros(0, np.int64)
        chunk = max(CHUNK, self._task.block_length)  # makes one block final at least
        while (start := int(self._final[rows].min())) + chunk < lo:
            self._feed(every, start, start + chunk, none)
            self._settle(start, start + chunk, np.full(len(rows), lo))
        self._settle(start, hi, np.where(members.any(1), members.argmax(1), self._final))
        if self._task.model.shift and start > 0 and call.places[:, start].any():
            start -= 1  # its row predicts position start
        return start, hi

    def _committed(self, call: Call, lo: int, hi: int) -> tuple[int, int]:
        """Causal calls store what stands before the block at `lo`; a call that seeds is the last.

        Blocks stand at the same places in all rows, so the same is final in all.
        """
        every, none = np.arange(len(call.rows)), np.zeros(0, np.int64)
        start = int(self._final.min())
        while start + (CHUNK if call.seeds else 0) < lo:
            stop = min(start + CHUNK, lo)
            self._feed(every, start, stop, none, causal=True)
            start = stop
        self._final[:] = lo
        return (start, lo) if call.seeds else (lo, hi)

    def _settle(self, start: int, stop: int, filled: Ints) -> None:
        """Note what is final once start ... stop is fed: whole blocks before `filled` [B]."""
        size = self._task.block_length
        whole = self._first + (stop - self._first) // size * size
        reached = self._final >= start  # in the other rows there is a gap before the fed range
        final = np.maximum(self._final, np.minimum(whole, filled))
        self._final = np.where(reached, final, self._final)

    def _with_shadow(self, call: Call, rows: Ints, window: Ints) -> Reductions:
        """The canvas and a shadow of the block, which predicts its tokens."""
        members, length = call.members, self._task.canvas.shape[1]
        assert members is not None
        asked = rows_for(members[rows], self._task.masked()[rows], window)
        every, shadow = np.asarray(sorted({*asked.flat})), shadow_of(members[rows])
        return at_rows(self._feed(rows, 0, length, every, shadow=shadow), every, asked)

    def _feed(
        self,
        rows: Ints,
        start: int,
        stop: int,
        window: Ints,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        task, settings = self._task, self._task.settings
        ids = task.canvas[rows, start:stop]
        mask = task.key_mask[rows]
        if self._cache is None:
            mask = mask[:, :stop]
        elif task.causal:
            mask = mask & (np.arange(mask.shape[1]) < stop)
            mask[~mask.any(1), start] = True  # padding that sees nothing would leave NaN behind
        if self._guided:  # the unconditional rows know nothing of what was given
            given = np.where(task.blank[rows, start:stop], ids, task.model.mask_id)
            ids, mask = np.concatenate([ids, given]), np.concatenate([mask, mask])
            shadow = None if shadow is None else np.concatenate([shadow, shadow])
        return self._session.forward(
            ids,
            mask,
            window,
            special_bias(task.model, settings),
            settings.cfg_scale if self._guided else None,
            scale(settings) if settings.reshapes else None,
            wanted(settings),
            self._cache,
            start,  # 0 without a cache
            causal=causal,
            shadow=shadow,
        )


def causal_call(task: Task, call: Call) -> bool:
    """True when no position may see what stands behind it, and each row predicts the next one."""
    return call.seeds and task.commits_causally


def special_bias(model: ModelFacts, settings: Settings) -> npt.NDArray[np.float32]:
    """LLaDA's two switches as [2, E]: on the logits of the special ids, and on confidences only."""
    bias = np.zeros((2, len(model.special_ids)), np.float32)
    if settings.eos_inf:
        bias[0, np.asarray(model.special_ids) == model.eos_id] = SUPPRESSED
    if settings.confidence_eos_inf:
        bias[1] = SUPPRESSED
    return bias


def _spread(array: Array, rows: Ints, batch: int) -> Array:
    """The array [R, …] with its rows at their places among `batch` rows."""
    if len(rows) == batch:
        return array
    missing = np.inf if np.issubdtype(array.dtype, np.floating) else -1
    spread = np.full((batch, *array.shape[1:]), missing, array.dtype)
    spread[rows] = array
    return spread
