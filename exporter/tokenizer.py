"""The tokenizer of a checkpoint, as one tokenizer.json whatever the upstream files are.

Dream's folders hold `vocab.json` and `merges.txt` with tokenizer code in Python, which is never
run: the byte-level BPE of Qwen2 that it implements is put together here from its parts.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from exporter.errors import UserError

FILE = "tokenizer.json"

# how Qwen2 cuts a text into words: contractions, letters, single digits, punctuation, white space
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in `folder`; None where there are no files of one. Raises UserError."""
    try:
        if (folder / FILE).is_file():
            return Tokenizer.from_file(str(folder / FILE))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _from_vocabulary(folder)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(
            f"The tokenizer in `{folder}` cannot be read: {error}", "Download its files again"
        ) from None
    return None


def added_tokens(folder: Path) -> dict[str, int]:
    """Special and other added tokens with their ids, from whichever file lists them."""
    if (folder / FILE).is_file():
        listed = _read(folder / FILE).get("added_tokens", [])
        return {token["content"]: int(token["id"]) for token in listed}
    return {token["content"]: int(i) for i, token in _decoder(folder).items()}


def _from_vocabulary(folder: Path) -> Tokenizer:
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for wanted, entry in sorted((int(i), entry) for i, entry in _decoder(folder).items()):
        content, special = entry["content"], bool(entry.get("special"))
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(content, normalized=False, special=special)])
        if (got := tokenizer.token_to_id(content)) != wanted:
            raise UserError(
                f"Added token `{content}` of `{folder}` has id {wanted}, the next free is {got}",
                "Give a tokenizer.json: save the tokenizer once with transformers",
            )
    return tokenizer


def _decoder(folder: Path) -> dict[str, dict[str, Any]]:
    """Id -> content and flags of the added tokens, where no tokenizer.json lists them."""
    config = folder / "tokenizer_config.json"
    found: dict[str, dict[str, Any]] = {}
    if config.is_file():
        found = _read(config).get("added_tokens_decoder", {})
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"`{file}` is not JSON: {error}", "Download it again") from None
    return content
