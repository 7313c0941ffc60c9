"""The canvas on a terminal: every token once, no line too wide, nothing that moves the cursor."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.canvas_view import (
    DONE,
    EDITED,
    END,
    FRESH,
    GLYPHS,
    MASK,
    OPEN,
    PROMPT,
    Cell,
    columns,
    line_of,
    make_cells,
    printable,
    scroll,
    wrap,
)
from exporter.runtime.text import Text
from tests.tiny_bundle import EOS, write_tokenizer

KINDS = (MASK, OPEN, PROMPT, DONE, FRESH, EDITED)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    folder = tmp_path_factory.mktemp("text") / "tokenizer"
    write_tokenizer(folder)
    return Text(folder)


@given(TEXTS, st.lists(st.integers(0, 255), max_size=8), st.data())
@settings(deadline=None)
def test_every_token_is_in_one_cell(
    text: Text, said: str, more: list[int], data: st.DataObject
) -> None:
    """A token is a byte here, so that characters are spread over tokens, and some are cut."""
    ids = text.encode(said, 256, chat=False) + more
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=len(ids), max_size=len(ids)))
    for names in (text, None):
        cells = make_cells(ids, kinds, [EOS], names)
        covered = [cell.first + n for cell in cells for n in range(cell.count)]
        assert covered == list(range(len(ids)))
        for cell in cells:
            own = kinds[cell.first : cell.first + cell.count]
            assert cell.kind in own
            assert (cell.text in GLYPHS.values()) <= (cell.kind in GLYPHS)
            assert columns(cell.text) > 0
            if cell.kind in GLYPHS:
                assert own == [cell.kind]


@given(TEXTS)
@settings(deadline=None)
def test_a_text_reads_as_it_is(text: Text, said: str) -> None:
    """Characters that are spread over several tokens are whole again."""
    ids = text.encode(said, 256, chat=False)
    if "\ufffd" in said or "<|" in said:  # a special token has its own name
        return
    cells = make_cells(ids, [DONE] * len(ids), [EOS], text)
    assert [cell.text for cell in cells] == [printable(character) for character in said]


@given(TEXTS)
def test_nothing_that_is_printable_moves_the_cursor(said: str) -> None:
    shown = printable(said)
    assert columns(shown) > 0
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in shown)


def test_widths() -> None:
    assert columns("ab") == 2
    assert columns("日本") == 4
    assert columns("e\u0301") == 1
    assert printable("\n") == "⏎"
    assert printable("\x1b[2J") == "[2J"
    assert printable("\u202e") == printable("") == "·"


CELLS = st.lists(
    st.builds(lambda t, b: (printable(t), b), TEXTS, st.booleans()), min_size=1, max_size=30
).map(lambda pairs: [Cell(t, DONE, i, breaks=b) for i, (t, b) in enumerate(pairs)])


@given(CELLS, st.integers(2, 30))
def test_lines_hold_every_cell_once_and_fit(cells: list[Cell], width: int) -> None:
    lines = wrap(cells, width)
    assert all(sum(columns(part.text) for part in line) <= width for line in lines)
    assert all(lines)
    parts = [part for line in lines for part in line]
    for cell in cells:
        own = [part for part in parts if part.first == cell.first]
        assert "".join(part.text for part in own) == cell.text
        assert [part.count for part in own] == [1] + [0] * (len(own) - 1)
        assert columns(cell.text) > width or len(own) == 1  # only what must be is cut
        assert cell.first in [part.first for part in lines[line_of(lines, cell.first)]]
    assert [part.first for part in parts] == sorted(part.first for part in parts)


def test_a_line_ends_behind_a_new_line_token() -> None:
    cells = [Cell("a", DONE, 0), Cell("⏎", DONE, 1, breaks=True), Cell("b", DONE, 2)]
    assert [[cell.text for cell in line] for line in wrap(cells, 10)] == [["a", "⏎"], ["b"]]
    assert wrap([], 10) == [[]]
    with pytest.raises(ValueError, match="position 3"):
        line_of(wrap(cells, 10), 3)


def test_an_end_of_text_token_is_one_sign(text: Text) -> None:
    cells = make_cells([EOS, 65], [DONE, DONE], [EOS], text)
    assert cells[0].text == END != cells[1].text


@given(st.data())
def test_scrolling_shows_what_is_active_and_moves_little(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 40))
    height = data.draw(st.integers(1, 20))
    first = data.draw(st.integers(0, total - 1))
    last = data.draw(st.integers(first, total - 1))
    before = data.draw(st.integers(0, max(0, total - height)))
    top = scroll(before, total, height, first, last)
    assert 0 <= top <= max(0, total - height)
    assert top <= first < top + height
    assert last < top + height or last - first >= height
    if before <= first and last < before + height:
        assert top == before
    assert scroll(top, total, height, first, last) == top
