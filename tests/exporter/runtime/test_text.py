"""Text and ids: templates, blanks, conversations, pieces."""

import json
from pathlib import Path

import pytest

from exporter.runtime.errors import UserError
from exporter.runtime.text import Text, chat_template
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


def test_a_conversation_is_rendered_turn_by_turn(tmp_path: Path) -> None:
    write_tokenizer(folder := tmp_path / "tokenizer")
    assert not Text(folder).has_template()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    said = [("user", "hi"), ("assistant", "ho"), ("user", "hm")]
    ids = Text(folder).encode_chat([{"role": role, "content": text} for role, text in said])
    assert Text(folder).has_template()
    assert Text(folder).piece(ids) == "<user>hi<assistant>ho<user>hm<assistant>"


def test_pieces_show_special_tokens_and_spaces(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    write_tokenizer(folder := tmp_path / "bytes")
    text = Text(folder)
    assert text.piece([*text.encode("a b", MASK, chat=False), EOS]) == "a b<|end|>"
    words = Tokenizer(models.WordLevel({"\u2581hi": 0, "\u2581you": 1}, unk_token="\u2581hi"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    sentence = Text(tmp_path, words)
    assert sentence.decode([0, 1]) == "hi you"
    assert sentence.piece([0]) + sentence.piece([1]) == " hi you"


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
