"""A canvas as lines of a terminal: which characters stand where, and which lines are in view.

Widths are in columns, of which a wide character takes two and a combining one none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .text import Text

MASK, OPEN = "mask", "open"  # not filled; of these, what the last forward could have filled
PROMPT, DONE, FRESH, EDITED = "prompt", "done", "fresh", "edited"  # filled, least striking first
GLYPHS = {MASK: "░", OPEN: "▒"}
END = "¶"  # an end-of-text token: its name would be repeated to the end of the canvas
SHOWN = {"\n": "⏎", "\t": "⇥"}  # other characters that draw nothing are left out, or a dot
LONGEST = 4  # tokens that one character may be spread over: UTF-8 has at most four bytes


@dataclass(frozen=True)
class Cell:
    """Tokens that are drawn together: one, or as many as share a character."""

    text: str
    kind: str
    first: int  # position on the canvas
    count: int = 1  # positions
    breaks: bool = False  # the line ends behind it


Line = list[Cell]


def make_cells(
    ids: Sequence[int], kinds: Sequence[str], ends: Sequence[int], text: Text | None
) -> list[Cell]:
    """A cell for each token or group of tokens; `ends` are the ids shown as `END`."""
    cells: list[Cell] = []
    at = 0
    while at < len(ids):
        cells.append(_cell(at, ids, kinds, ends, text))
        at += cells[-1].count
    return cells


def _cell(
    at: int, ids: Sequence[int], kinds: Sequence[str], ends: Sequence[int], text: Text | None
) -> Cell:
    if kinds[at] in GLYPHS:
        return Cell(GLYPHS[kinds[at]], kinds[at], at)
    if ids[at] in ends:
        return Cell(END, kinds[at], at)
    if text is None:
        return Cell(f"{ids[at]} ", kinds[at], at)
    for count in range(1, LONGEST + 1):
        group = kinds[at : at + count]
        if len(group) < count or group[-1] in GLYPHS:
            break
        piece = text.piece(list(ids[at : at + count]))
        if not piece.endswith("\ufffd"):
            kind = max(group, key=(PROMPT, DONE, FRESH, EDITED).index)
            return Cell(printable(piece), kind, at, count, "\n" in piece)
    return Cell("\ufffd", kinds[at], at)


def printable(text: str) -> str:
    """`text` without what moves the cursor or changes the terminal; something, whatever it is."""
    shown = "".join(SHOWN.get(c, c if _draws(c) else "") for c in text)
    return shown if columns(shown) else f"·{shown}"


def _draws(character: str) -> bool:
    # C*: control, format (reorders the line), surrogate, private, unassigned; Zl, Zp: line ends
    category = unicodedata.category(character)
    return category[0] != "C" and category not in ("Zl", "Zp")


def columns(text: str) -> int:
    """Columns that a printable text takes, at most."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if character == "\ufe0f":  # makes a symbol an emoji, which is wider
        return 1
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def wrap(cells: Sequence[Cell], width: int) -> list[Line]:
    """Lines of at most `width` columns, two or more; only cells that are wider are cut."""
    lines: list[Line] = [[]]
    used = 0
    for cell in cells:
        for part in _cut(cell, width):
            if used + columns(part.text) > width:
                lines.append([])
                used = 0
            lines[-1].append(part)
            used += columns(part.text)
        if cell.breaks:
            lines.append([])
            used = 0
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _cut(cell: Cell, width: int) -> list[Cell]:
    """The cell in parts of at most `width`; the first stands for all of its positions."""
    parts = [""]
    for character in cell.text:
        if columns(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return [replace(cell, text=t, count=0 if i else cell.count) for i, t in enumerate(parts)]


def line_of(lines: Sequence[Line], position: int) -> int:
    """The line on which a position of the canvas begins to be drawn."""
    for number, line in enumerate(lines):
        if any(cell.first <= position < cell.first + cell.count for cell in line):
            return number
    raise ValueError(f"position {position} is on none of the {len(lines)} lines")


def scroll(top: int, total: int, height: int, first: int, last: int) -> int:
    """The first of `height` lines in view among `total`, moved from `top` as little as possible.

    Lines `first` to `last` come into view; of more than `height` of these, the first.
    """
    top = min(max(top, last - height + 1), first)
    return max(0, min(top, total - height))
