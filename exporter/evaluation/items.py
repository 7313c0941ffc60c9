"""From examples to token ids with their settings: all that can be wrong is found before work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.errors import UserError
from exporter.evaluation.batches import Item
from exporter.evaluation.subject import Subject
from exporter.runtime.settings import Settings, check_blocks
from exporter.tasks import Example


def make_items(
    subject: Subject, examples: Sequence[Example], given: Mapping[str, Any], chat: bool
) -> list[Item]:
    """Items in the order of `examples`.

    `given` are fields of Settings that the user set; they go before what an example says, that
    before the subject's defaults. With `chat` prompts are put into the chat template, where there
    is one. Raises UserError for what the subject cannot decode.
    """
    lengths = {example.gen_length for example in examples}
    settings = {length: settings_for(subject.settings, given, length) for length in lengths}
    if subject.facts.attention == "full":
        for chosen in settings.values():
            check_blocks(chosen)
    items = [
        Item(index, example, encode(subject, example, chat), settings[example.gen_length])
        for index, example in enumerate(examples)
    ]
    for item in items:
        check_length(subject, item.example.task, len(item.ids), item.settings.gen_length)
    return items


def settings_for(defaults: Settings, given: Mapping[str, Any], length: int | None) -> Settings:
    """`defaults` with what was given and an example's own answer `length`.

    A default of one block for the whole answer stays that, whatever the length.
    """
    values = {"gen_length": defaults.gen_length if length is None else length, **given}
    if "block_length" not in given and (new := values["gen_length"]):
        whole = defaults.block_length >= defaults.gen_length
        values["block_length"] = new if whole else min(defaults.block_length, new)
    return replace(defaults, **values)


def encode(subject: Subject, example: Example, chat: bool) -> tuple[int, ...]:
    """The ids of a prompt, each of which the subject knows."""
    if example.ids:
        return check_ids(subject, example.task, example.ids)
    if subject.text is None:
        raise UserError(
            f"`{example.task}` holds text, but `{subject.name}` has no tokenizer",
            'Give lines of token ids: {"ids": [5, 7, 9], "answer": "2,4"}',
        )
    ids = subject.text.encode(example.prompt, subject.facts.mask_id, chat)
    return check_ids(subject, example.task, ids)


def check_ids(subject: Subject, task: str, ids: Iterable[int]) -> tuple[int, ...]:
    """`ids`, if the subject knows them all."""
    known, facts = tuple(ids), subject.facts
    for i in known:
        if not 0 <= i < facts.vocab_size and i != facts.mask_id:
            raise UserError(
                f"A line of `{task}` has id {i}, outside of 0 … {facts.vocab_size - 1}",
                "Check that the tasks are made for this model's vocabulary",
            )
    return known


def check_length(subject: Subject, task: str, prompt: int, answer: int) -> None:
    """Raises UserError where prompt and answer together are longer than the subject takes."""
    most = subject.facts.max_length
    if prompt + answer > most:
        raise UserError(
            f"A prompt of `{task}` has {prompt} tokens, its answer {answer}: more than the {most}"
            f" that `{subject.name}` takes",
            "Shorten the prompts, give a smaller --gen-length, or build with a larger --max-canvas",
        )
