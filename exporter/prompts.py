"""Where calibration and gate take their prompts from, as token ids."""

import random
from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint import Checkpoint
from exporter.errors import UserError
from exporter.runtime.text import Text
from exporter.tasks import Example, calibration_examples, held_out_examples, read_examples
from exporter.tokenizer import read_tokenizer

RANDOM_LENGTH = 16  # tokens of a made-up prompt, for a checkpoint without a tokenizer


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts, split so that the gate never sees what calibration saw."""

    calibration: tuple[tuple[int, ...], ...]
    held_out: tuple[tuple[int, ...], ...]
    source: str  # for the manifest


def read_prompts(
    checkpoint: Checkpoint, file: Path | None, calibrate: int, check: int, seed: int
) -> Prompts:
    """`calibrate` and `check` prompts from `file`, else from the reference tasks.

    Without a tokenizer, and with no file of ids, prompts are made of random ids. Raises UserError
    for a file that cannot be used.
    """
    tokenizer = read_tokenizer(checkpoint.folder)
    if file is not None:
        examples = read_examples(file)
        if tokenizer is None and not all(example.ids for example in examples):
            raise UserError(
                f"`{file}` holds text, but `{checkpoint.folder}` has no tokenizer",
                'Give lines of token ids: {"ids": [5, 7, 9]}',
            )
        examples = list({(e.prompt, e.ids): e for e in examples}.values())  # none is in both parts
        random.Random(seed).shuffle(examples)
        cut = min(calibrate, max(1, len(examples) - check)) if len(examples) > 1 else 1
        parts = examples[:cut], examples[cut : cut + check] or examples[:check]
        return _encode(checkpoint, *parts, source=file.name)
    if tokenizer is None:
        made = _random_ids(checkpoint, calibrate + check, seed)
        return Prompts(tuple(made[:calibrate]), tuple(made[calibrate:]), "random ids")
    known, unseen = calibration_examples(), held_out_examples()
    draw = random.Random(seed)
    drawn = draw.sample(known, min(calibrate, len(known)))
    held_out = draw.sample(unseen, min(check, len(unseen)))
    return _encode(checkpoint, drawn, held_out, source="reference tasks")


def encode_examples(checkpoint: Checkpoint, examples: list[Example]) -> list[tuple[int, ...]]:
    """Token ids as the decode loop makes them, chat template included."""
    if all(example.ids for example in examples):
        encoded = [example.ids for example in examples]
    else:
        text = Text(checkpoint.folder, read_tokenizer(checkpoint.folder))
        mask = checkpoint.spec.mask_id
        encoded = [e.ids or tuple(text.encode(e.prompt, mask, chat=True)) for e in examples]
    for ids in encoded:
        if not ids or max(ids) >= checkpoint.spec.vocab_size:
            last = checkpoint.spec.vocab_size - 1
            raise UserError(
                f"A prompt has ids {list(ids[:8])}…, outside of 0 … {last}",
                "Check that the prompts are made for this model's vocabulary",
            )
    return encoded


def used_vocabulary(checkpoint: Checkpoint) -> int:
    """Ids that a text can hold: rows of the head from there on are padding."""
    tokenizer = read_tokenizer(checkpoint.folder)
    if tokenizer is None:
        return checkpoint.spec.vocab_size
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return min(checkpoint.spec.vocab_size, max(ids.values()) + 1)


def _encode(
    checkpoint: Checkpoint, calibration: list[Example], held_out: list[Example], source: str
) -> Prompts:
    return Prompts(
        tuple(encode_examples(checkpoint, calibration)),
        tuple(encode_examples(checkpoint, held_out)),
        source,
    )


def _random_ids(checkpoint: Checkpoint, count: int, seed: int) -> list[tuple[int, ...]]:
    spec, draw = checkpoint.spec, random.Random(seed)
    banned = {spec.mask_id, spec.pad_id, *spec.special_ids}
    known = [i for i in range(min(spec.vocab_size, 4096)) if i not in banned]
    return [tuple(draw.choices(known, k=RANDOM_LENGTH)) for _ in range(count)]
