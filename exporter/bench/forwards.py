"""One forward pass: a whole canvas, and a block of a canvas whose keys and values are kept."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from exporter.runtime.bundle import ModelFacts
from exporter.runtime.candidates import scale, wanted
from exporter.runtime.forward import special_bias
from exporter.runtime.session import Ints, Reductions, Session
from exporter.runtime.settings import Settings

SHARES = (16, 4, 1)  # canvases are these parts of the longest …
SHORTEST = 64  # … where they have as many tokens


@dataclass(frozen=True)
class Load:
    """What a call is fed: one sequence, with its unconditional double under guidance."""

    graph: str  # full or cached
    tokens: int  # fed
    canvas: int

    @property
    def cached(self) -> bool:
        return self.graph == "cached"


def loads(canvases: list[int], settings: Settings, cached: bool) -> list[Load]:
    """Whole canvases; where there is a graph with a cache, one block at the end of each too."""
    whole = [Load("full", canvas, canvas) for canvas in canvases]
    block = settings.block_length
    steps = [Load("cached", block, canvas) for canvas in canvases if canvas > block]
    return whole + (steps if cached else [])


def default_canvases(longest: int) -> list[int]:
    """Lengths in tokens, ascending: parts of the longest canvas that a bundle can hold."""
    parts = [longest // share for share in SHARES]
    return [part for part in parts if part >= SHORTEST or part == longest]


def make_call(
    session: Session, load: Load, model: ModelFacts, settings: Settings
) -> Callable[[], Reductions]:
    """A call that feeds `load` again and again: random tokens, masks where an answer would stand.

    The cache, where there is one, has seen the whole canvas before. The window is a block.
    """
    guided = settings.cfg_scale > 0
    canvas = _tokens(load.canvas, model, settings, 2 if guided else 1)
    key_mask = np.ones_like(canvas, np.bool_)
    first = load.canvas - load.tokens
    window = np.arange(max(first, load.canvas - settings.block_length), load.canvas)
    cache = session.new_cache(*canvas.shape) if load.cached else None

    def call(ids: Ints, start: int) -> Reductions:
        return session.forward(
            ids, key_mask, window, special_bias(model, settings),
            settings.cfg_scale if guided else None,
            scale(settings) if settings.reshapes else None,
            wanted(settings), cache, start,
        )  # fmt: skip

    if load.cached:
        call(canvas, 0)
    return lambda: call(canvas[:, first:], first)


def _tokens(length: int, model: ModelFacts, settings: Settings, rows: int) -> Ints:
    """A canvas (rows, length); the last `gen_length` tokens, or all but one, are masks."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, model.vocab_size, (rows, length))
    tokens[tokens == model.mask_id] = model.pad_id
    tokens[:, -min(settings.gen_length, length - 1) :] = model.mask_id
    return tokens
