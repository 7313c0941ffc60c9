"""How far a run over many prompts is: one line on stderr, where that is a terminal."""

from __future__ import annotations

import sys

from .statistics import Statistics


class Progress:
    """A line that is drawn over again; without `shown` nothing at all."""

    def __init__(self, prompts: int, shown: bool) -> None:
        self._prompts = prompts
        self._shown = shown and sys.stderr.isatty()

    def show(self, now: Statistics) -> None:
        """Draw the line for what is done."""
        left = now.seconds / max(now.prompts, 1) * (self._prompts - now.prompts)
        self._draw(
            f"{now.prompts}/{self._prompts} prompts, {now.tokens_per_second:.1f} tokens/s,"
            f" {left:.0f} s left"
        )

    def clear(self) -> None:
        """Take the line away, so that something else can be printed."""
        self._draw("")

    def _draw(self, line: str) -> None:
        if self._shown:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
