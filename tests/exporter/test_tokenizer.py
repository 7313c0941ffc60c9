"""A tokenizer put together from vocabulary and merges, as Dream's folders hold them."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from exporter.errors import UserError
from exporter.runtime.text import Text
from exporter.tokenizer import added_tokens, read_tokenizer

SPECIAL = ("<|endoftext|>", "<|mask|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json, merges.txt and tokenizer_config.json of a small byte-level BPE."""
    place = tmp_path_factory.mktemp("bpe")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    words = ["the cat sat on the mat", "don't unmask the 1234 tokens", "naïve café, naïve café"]
    tokenizer.train_from_iterator(words * 20, trainer)
    tokenizer.model.save(str(place))
    size = tokenizer.get_vocab_size()
    decoder = {str(size + i): {"content": t, "special": True} for i, t in enumerate(SPECIAL)}
    decoder[str(size + 2)] = {"content": "<tool>", "special": False}
    config = {"added_tokens_decoder": decoder}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


@given(text=st.text(max_size=40))
def test_every_text_comes_back_normalised(folder: Path, text: str) -> None:
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode(text).ids) == unicodedata.normalize("NFC", text)


def test_words_are_cut_as_qwen2_cuts_them(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    text = "don't  the1234 cat,\n\n café"
    cut = [text[a:b] for _, (a, b) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == ["don", "'t", " ", " the", "1", "2", "3", "4", " cat", ",\n\n", " café"]


def test_added_tokens_keep_their_ids_and_flags(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    listed = added_tokens(folder)
    assert set(listed) == {*SPECIAL, "<tool>"}
    ids = tokenizer.encode("the<|mask|><tool>").ids
    assert ids[-2:] == [listed["<|mask|>"], listed["<tool>"]]
    assert tokenizer.decode(ids) == "the<tool>"  # special tokens are no text


def test_the_decode_loop_reads_what_is_written(folder: Path, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    text = "naïve 12 cats don't"
    ids = Text(tmp_path).encode(text, mask_id=0, chat=False)
    assert ids == tokenizer.encode(text).ids and Text(tmp_path).decode(ids) == text
    assert added_tokens(tmp_path) == added_tokens(folder)


def test_a_hole_in_the_added_ids_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = {"added_tokens_decoder": {"9000": {"content": "<far>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"`<far>` .* has id 9000"):
        read_tokenizer(tmp_path)


def test_no_files_and_broken_files(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None and added_tokens(tmp_path) == {}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        read_tokenizer(tmp_path)


def test_byte_level_decoding_is_exact() -> None:
    """The decoder is the inverse of the alphabet that the vocabulary is written in."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert len(set(alphabet)) == 256
    assert decoders.ByteLevel().decode(["ĠcafÃ©"]) == " café"
