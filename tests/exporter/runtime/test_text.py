"""Text and ids: templates, blanks, and a stream that never breaks a character."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.runtime.errors import UserError
from exporter.runtime.text import Stream, Text, chat_template
from tests.tiny_bundle import EOS, MASK, write_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "tokenizer"
    write_tokenizer(folder)
    return folder


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffd")))
def test_a_stream_adds_up_and_never_breaks_a_character(folder: Path, text: str) -> None:
    tokenizer = Text(folder)
    if "<|" in text:
        return
    ids = tokenizer.encode(text, MASK, chat=False)
    assert tokenizer.decode(ids) == text
    stream = Stream(tokenizer)
    pieces = [stream.more(ids[:n]) for n in range(len(ids) + 1)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text  # nothing is held back once a character is whole
    assert stream.more(ids, last=True) == ""


def test_a_cut_character_shows_at_the_end_only(folder: Path) -> None:
    tokenizer = Text(folder)
    ids = tokenizer.encode("a€", MASK, chat=False)[:-1]
    stream = Stream(tokenizer)
    assert stream.more(ids) == "a"
    assert stream.more(ids, last=True) == "\ufffd"


def test_blanks_become_mask_ids_and_special_tokens_do_not_show(folder: Path) -> None:
    tokenizer = Text(folder)
    a, b = tokenizer.encode("a", MASK, chat=False), tokenizer.encode(" b", MASK, chat=False)
    assert tokenizer.encode("a<mask><mask> b", MASK, chat=True) == [*a, MASK, MASK, *b]
    assert tokenizer.decode([*a, EOS, *b, EOS]) == "a b"


@pytest.mark.parametrize("form", ["file", "config", "list"])
def test_chat_template_is_found_and_rendered(tmp_path: Path, form: str) -> None:
    write_tokenizer(folder := tmp_path / "tokenizer")
    config: dict[str, object] = {"bos_token": {"content": "<|turn|>"}, "eos_token": "<|end|>"}
    if form == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    elif form == "config":
        config["chat_template"] = TEMPLATE
    else:
        config["chat_template"] = [
            {"name": "tools", "template": "no"},
            {"name": "default", "template": TEMPLATE},
        ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Text(folder)
    want = tokenizer.encode("<|turn|><user>hi<|end|><assistant>", MASK, chat=False)
    assert tokenizer.encode("hi", MASK, chat=True) == want
    assert tokenizer.encode("hi", MASK, chat=False) != want
    assert MASK in tokenizer.encode("hi<mask>", MASK, chat=True)


def test_a_template_may_refuse_but_not_reach_out(tmp_path: Path) -> None:
    write_tokenizer(folder := tmp_path / "tokenizer")
    path = folder / "chat_template.jinja"
    path.write_text("{{ raise_exception('only images') }}")
    with pytest.raises(UserError, match="only images"):
        Text(folder).encode("hi", MASK, chat=True)
    path.write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(Exception, match="unsafe"):
        Text(folder).encode("hi", MASK, chat=True)


def test_a_tokenizer_without_template_takes_the_prompt_as_it_is(folder: Path) -> None:
    assert chat_template(folder) is None
    tokenizer = Text(folder)
    assert tokenizer.encode("hi", MASK, chat=True) == tokenizer.encode("hi", MASK, chat=False)


def test_no_tokenizer_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json") as error:
        Text(tmp_path)
    assert "--ids" in error.value.hint


def test_begin_tokens_stand_before_a_prompt_with_blanks(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    write_tokenizer(folder := tmp_path / "tokenizer")
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|turn|> $A <|end|>", special_tokens=[("<|turn|>", 258), ("<|end|>", EOS)]
    )
    tokenizer.save(path)
    ids = Text(folder).encode("a<mask>", MASK, chat=False)
    assert [ids[0], ids[-1], len(ids)] == [258, MASK, 3]
