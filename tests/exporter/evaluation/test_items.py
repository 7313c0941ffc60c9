"""Settings are the user's, then the example's, then the subject's; what cannot be is refused."""

from dataclasses import replace

import pytest

from exporter.errors import UserError
from exporter.evaluation.items import make_items, settings_for
from exporter.evaluation.subject import Subject
from exporter.runtime.settings import Settings
from exporter.tasks import Example


def test_what_is_said_last_counts() -> None:
    defaults = Settings(gen_length=32, block_length=8, steps=8)
    assert settings_for(defaults, {}, None) == defaults
    assert settings_for(defaults, {}, 16) == replace(defaults, gen_length=16)
    assert settings_for(defaults, {"gen_length": 64}, 16) == replace(defaults, gen_length=64)
    assert settings_for(defaults, {"steps": 4}, 16) == replace(defaults, gen_length=16, steps=4)


def test_blocks_follow_the_answer() -> None:
    whole = Settings(gen_length=8, block_length=8)
    assert settings_for(whole, {}, 16).block_length == 16
    assert settings_for(whole, {"block_length": 4}, 16).block_length == 4
    parts = Settings(gen_length=64, block_length=32)
    assert settings_for(parts, {}, 128).block_length == 32
    assert settings_for(parts, {}, 16).block_length == 16


def test_items_keep_order_and_number(tiny: Subject, examples: list[Example]) -> None:
    items = make_items(tiny, examples, {}, chat=True)
    assert [item.index for item in items] == list(range(len(examples)))
    assert [item.example for item in items] == examples
    assert [item.settings.gen_length for item in items] == [e.gen_length for e in examples]
    assert [len(item.ids) for item in items] == [len(e.prompt) for e in examples]


def test_ids_are_taken_as_they_are(tiny: Subject) -> None:
    (item,) = make_items(tiny, [Example("t", ids=(5, 256, 9))], {}, chat=True)
    assert item.ids == (5, 256, 9)  # 256 is the mask: a blank to fill


@pytest.mark.parametrize(
    ("example", "seen", "hint"),
    [
        (Example("long", "x" * 60), "`long` has 60 tokens, its answer 16: more than the 64", "Sho"),
        (Example("odd", ids=(3, 264)), "`odd` has id 264, outside of 0 … 263", "vocabulary"),
    ],
)
def test_what_cannot_be_decoded_is_refused(
    tiny: Subject, example: Example, seen: str, hint: str
) -> None:
    with pytest.raises(UserError, match=seen) as caught:
        make_items(tiny, [example], {}, chat=True)
    assert hint in caught.value.hint


def test_text_needs_a_tokenizer(tiny: Subject) -> None:
    mute = replace(tiny, text=None)
    with pytest.raises(UserError, match="holds text, but `bundle` has no tokenizer"):
        make_items(mute, [Example("t", "x")], {}, chat=True)
