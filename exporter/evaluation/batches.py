"""Which prompts are decoded together: equal shapes only.

Rows of unequal length would have to be padded, and a family that counts positions from the padding
would answer otherwise than for the prompt alone. So an answer does not depend on its batch, but for
random samplers, whose random numbers go by the row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from exporter.runtime.settings import Settings
from exporter.tasks import Example

TOKENS_AT_ONCE = 4096  # of the canvases of one batch; no faster beyond, measured on small models
LOGITS_AT_ONCE = 1 << 22  # predictions of one call times the vocabulary


@dataclass(frozen=True)
class Item:
    """An example, ready to be decoded."""

    index: int  # among all examples of the evaluation
    example: Example
    ids: tuple[int, ...]  # of the prompt
    settings: Settings  # its own answer length included


@dataclass(frozen=True)
class Batch:
    """Items of one prompt length and equal settings."""

    items: tuple[Item, ...]

    @property
    def settings(self) -> Settings:
        return self.items[0].settings

    @property
    def prompts(self) -> list[list[int]]:
        return [list(item.ids) for item in self.items]


def make_batches(items: Iterable[Item], vocab: int, rows: int | None = None) -> list[Batch]:
    """All items, shape by shape as these first occur; `rows` in a batch, None: what memory takes.

    `vocab` is the number of ids that are predicted.
    """
    shapes: dict[tuple[int, Settings], list[Item]] = {}
    for item in items:
        shapes.setdefault((len(item.ids), item.settings), []).append(item)
    return [
        Batch(part)
        for (length, settings), group in shapes.items()
        for part in _cut(group, rows or rows_at_once(length, settings, vocab))
    ]


def rows_at_once(prompt_length: int, settings: Settings, vocab: int) -> int:
    """As many prompts of one length as keep the memory of a call within bounds."""
    length = prompt_length + settings.gen_length
    window = length if settings.by_canvas else settings.block_length
    return max(1, min(TOKENS_AT_ONCE // length, LOGITS_AT_ONCE // (window * vocab)))


def _cut(items: Sequence[Item], rows: int) -> Iterator[tuple[Item, ...]]:
    for start in range(0, len(items), rows):
        yield tuple(items[start : start + rows])
