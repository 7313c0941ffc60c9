"""Batches lose nothing, mix nothing, and stay within bounds."""

from hypothesis import given
from hypothesis import strategies as st

from exporter.evaluation.batches import (
    LOGITS_AT_ONCE,
    TOKENS_AT_ONCE,
    Item,
    make_batches,
    rows_at_once,
)
from exporter.runtime.settings import Settings
from exporter.tasks import Example

SHAPES = st.tuples(st.integers(1, 4), st.sampled_from([8, 16, 32]))


def items(shapes: list[tuple[int, int]]) -> list[Item]:
    return [
        Item(index, Example("t"), tuple(range(length)), Settings(gen_length=new, block_length=8))
        for index, (length, new) in enumerate(shapes)
    ]


@given(st.lists(SHAPES, max_size=40), st.none() | st.integers(1, 5))
def test_batches_hold_every_item_once_by_shape(
    shapes: list[tuple[int, int]], rows: int | None
) -> None:
    given_items = items(shapes)
    batches = make_batches(given_items, 100, rows)
    held = [item for batch in batches for item in batch.items]
    assert sorted(held, key=lambda item: item.index) == given_items
    for batch in batches:
        assert len({(len(item.ids), item.settings) for item in batch.items}) == 1
        assert rows is None or len(batch.items) <= rows
        assert [item.index for item in batch.items] == sorted(item.index for item in batch.items)


@given(st.integers(1, 4000), st.sampled_from([8, 64, 512]), st.integers(10, 200_000))
def test_a_batch_is_as_large_as_memory_takes(prompt: int, new: int, vocab: int) -> None:
    for settings in (Settings(gen_length=new, block_length=8), Settings("entropy", gen_length=new)):
        rows = rows_at_once(prompt, settings, vocab)
        length = prompt + new
        window = length if settings.by_canvas else 8
        fits = [
            n * length <= TOKENS_AT_ONCE and n * window * vocab <= LOGITS_AT_ONCE
            for n in (rows, rows + 1)
        ]
        assert fits == [True, False] or (rows == 1 and not fits[1])


def test_the_shipped_model_is_decoded_by_more_than_64_rows() -> None:
    assert rows_at_once(11, Settings(gen_length=8, block_length=8), 64) > 64
