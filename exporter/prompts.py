"""Where calibration and gate take their prompts from, as token ids."""

import logging
import random
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.checkpoint import Checkpoint
from exporter.errors import UserError
from exporter.runtime.text import Text
from exporter.tasks import Example, calibration_examples, held_out_examples, read_examples
from exporter.tokenizer import read_tokenizer

log = logging.getLogger(__name__)
RANDOM_LENGTH = 16  # tokens of a made-up prompt, for a checkpoint without a tokenizer


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts, split so that the gate never sees what calibration saw."""

    calibration: tuple[tuple[int, ...], ...]
    lengths: tuple[int | None, ...]  # of each one's answer; None: as the settings say
    held_out: tuple[tuple[int, ...], ...]  # answers are as long as the settings say
    source: str  # for the manifest


def read_prompts(
    checkpoint: Checkpoint,
    file: Path | None,
    calibrate: int,
    check: int,
    seed: int,
    gen_length: int | None = None,
) -> Prompts:
    """`calibrate` and `check` prompts from `file`, else from the checkpoint's own data.

    A checkpoint folder may hold `calibration.jsonl` and `tasks/*.jsonl`, as the shipped models do;
    for others the one-step reference's are taken. Without a tokenizer, and with no file of ids,
    prompts are made of random ids. Where examples say how long their answers are, those for `check`
    are of `gen_length`. Raises UserError for a file that cannot be used.
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
        # a quarter at most is for the gate: calibration needs more
        kept = min(check, max(1, len(examples) // 4)) if len(examples) > 1 else 0
        cut = min(calibrate, len(examples) - kept)
        rest = _of_length(examples[cut:], gen_length) or _of_length(examples, gen_length)
        return _encode(checkpoint, examples[:cut], rest[:check], source=file.name)
    if tokenizer is None:
        made = _random_ids(checkpoint, calibrate + check, seed)
        parts = tuple(made[:calibrate]), tuple(made[calibrate:])
        return Prompts(parts[0], (None,) * calibrate, parts[1], "random ids")
    known, unseen, source = _own_examples(checkpoint.folder)
    draw = random.Random(seed)
    drawn = draw.sample(known, min(calibrate, len(known)))
    fitting = _of_length(unseen, gen_length)
    held_out = draw.sample(fitting, min(check, len(fitting)))
    return _encode(checkpoint, drawn, held_out, source)


def _own_examples(folder: Path) -> tuple[list[Example], list[Example], str]:
    """Examples to calibrate on, held-out ones, and what they are, for a checkpoint's folder."""
    tasks = sorted((folder / "tasks").glob("*.jsonl"))
    if not (tasks and (folder / "calibration.jsonl").is_file()):
        log.warning(
            "Calibrating on the puzzles of the reference model: name prompts like those that the"
            " model will see with --calib"
        )
        # how long the reference model's answers are says nothing about this one's
        known = [replace(example, gen_length=None) for example in calibration_examples()]
        unseen = [replace(example, gen_length=None) for example in held_out_examples()]
        return known, unseen, "reference tasks"
    held_out = [example for file in tasks for example in read_examples(file)]
    return read_examples(folder / "calibration.jsonl"), held_out, "the checkpoint's own tasks"


def _of_length(examples: list[Example], gen_length: int | None) -> list[Example]:
    """Those whose answers may have `gen_length` tokens; all, if there is none."""
    lengths = (None, gen_length)
    return [e for e in examples if gen_length is None or e.gen_length in lengths] or examples


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
        tuple(example.gen_length for example in calibration),
        tuple(encode_examples(checkpoint, held_out)),
        source,
    )


def _random_ids(checkpoint: Checkpoint, count: int, seed: int) -> list[tuple[int, ...]]:
    spec, draw = checkpoint.spec, random.Random(seed)
    banned = {spec.mask_id, spec.pad_id, *spec.special_ids}
    known = [i for i in range(min(spec.vocab_size, 4096)) if i not in banned]
    return [tuple(draw.choices(known, k=RANDOM_LENGTH)) for _ in range(count)]
