"""Recorded runs: what is fed again in equal shapes is launched as one CUDA graph."""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from .cuda_runtime import Cuda, CudaError
from .errors import UserError

MOST = 32  # recordings that are kept: two calls of a block of 128 tokens, by 16 lengths of window
SEEN = 1024  # keys that are remembered as used once

R = TypeVar("R", bound=Callable[[], None])  # puts copies and one execution into the stream


class CudaGraphs:
    """Runs work by key: directly when a key is new, recorded when it comes again, then replayed.

    A recording has an execution context of its own: TensorRT forbids to change a context of which a
    recording is still launched. The recording that was not used for the longest time goes when
    there are more than `most`. Where recording fails, the reason is said on stderr once, and all
    work is run directly from then on.
    """

    def __init__(self, cuda: Cuda, on: bool, most: int = MOST) -> None:
        self._cuda, self._most = cuda, most
        self.on = on
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._recorded: OrderedDict[Hashable, _Recording] = OrderedDict()

    def run(self, key: Hashable, shared: Callable[[], R], own: Callable[[], R]) -> R:
        """Do the work of `key`, or replay it; returns the work that was done.

        `shared` makes it over a context that other keys use too, `own` over a new one.
        """
        if self.on and key in self._recorded:
            self._recorded.move_to_end(key)
            recording = self._recorded[key]
            recording.launch()
            return cast(R, recording.work)
        again = self.on and key in self._seen
        work = own() if again else shared()
        work()  # TensorRT sets up on the first run with new shapes what a recording may not do
        if again:
            self._record(key, work)
        else:
            self._seen[key] = None
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
        return work

    def _record(self, key: Hashable, work: Callable[[], None]) -> None:
        self._cuda.wait()
        try:
            self._recorded[key] = _Recording(self._cuda, work)
        except (CudaError, UserError) as error:
            self.on = False
            print(f"no CUDA graphs ({error}); every call is launched on its own", file=sys.stderr)
            return
        if len(self._recorded) > self._most:
            self._recorded.popitem(last=False)


class _Recording:
    """Recorded work, given back with this object; it holds context and buffers of the work."""

    def __init__(self, cuda: Cuda, work: Callable[[], None]) -> None:
        self._cuda, self.work = cuda, work
        cuda.begin_capture()
        try:
            work()
        except (CudaError, UserError):
            cuda.abandon_capture()
            raise
        self._recorded: Any = cuda.end_capture()
        weakref.finalize(self, cuda.drop, self._recorded)

    def launch(self) -> None:
        self._cuda.launch(self._recorded)
