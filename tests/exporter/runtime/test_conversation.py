"""A conversation: all of it in the template, the oldest turns dropped when it gets too long."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.conversation import Conversation
from exporter.runtime.text import Text
from tests.tiny_bundle import FACTS, MASK, write_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}a"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    folder = tmp_path_factory.mktemp("text") / "tokenizer"
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Text(folder)


SAID = st.text("xyz", min_size=1, max_size=12)


@given(st.lists(st.tuples(SAID, SAID), max_size=6), SAID, st.integers(16, 64))
@settings(deadline=None)
def test_it_holds_as_many_of_the_last_turns_as_fit(
    text: Text, turns: list[tuple[str, str]], said: str, room: int
) -> None:
    model, gen = replace(FACTS, max_length=room), 8
    conversation = Conversation(text, model, templated=True)
    for question, answer in turns:
        conversation.add(question, answer, dropped=0)
    ids, dropped = conversation.prompt(said, gen)
    parts = [f"u{question}a{answer}" for question, answer in turns]
    assert text.decode(ids) == "".join(parts[dropped:]) + f"u{said}a"
    assert len(ids) + gen <= room or dropped == len(turns)
    more = "".join(parts[max(dropped - 1, 0) :]) + f"u{said}a"
    assert not dropped or len(more) + gen > room  # no more than had to be
    conversation.add(said, "z", dropped)
    assert len(conversation.messages) == 2 * (len(turns) - dropped + 1)


def test_without_a_template_each_turn_is_alone(text: Text) -> None:
    conversation = Conversation(text, FACTS, templated=False)
    conversation.add("x", "y", 0)
    assert conversation.prompt("z", 8) == (text.encode("z", MASK, chat=False), 0)


def test_blanks_are_filled_and_not_talked_about(text: Text) -> None:
    conversation = Conversation(text, FACTS, templated=True)
    ids, dropped = conversation.prompt("x<mask>", 0)
    assert ids[-1] == MASK and dropped == 0
    conversation.add("x<mask>", "xy", 0)
    assert not conversation.messages
