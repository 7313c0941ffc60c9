"""The shipped prompts are those that the package's own tasks make, and the models run."""

from collections import Counter
from typing import get_args

import pytest

from exporter.checkpoint import open_checkpoint
from exporter.decoding import DecodeOptions, default_settings
from exporter.tasks import (
    Reference,
    calibration_examples,
    held_out_examples,
    held_out_tasks,
    reference_folder,
)
from exporter.tasks.problems import is_held_out, task

REFERENCES: tuple[Reference, ...] = get_args(Reference)
each_reference = pytest.mark.parametrize("reference", REFERENCES)
each_task = pytest.mark.parametrize(
    ("reference", "name"), [(r, name) for r in REFERENCES for name in held_out_tasks(r)]
)
FEW = {"split": 191}  # held-out prompts that exist, where fewer than 1,000


@each_reference
def test_checkpoint_is_complete_and_opens(reference: Reference) -> None:
    folder = reference_folder(reference)
    assert (folder / "README.md").is_file()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.family.name == ("sdar" if reference == "blocks" else "llada")
    settings = default_settings(checkpoint, DecodeOptions())
    assert (settings.gen_length, settings.block_length) == (8, checkpoint.spec.block_length or 8)


@each_task
def test_held_out_prompts(reference: Reference, name: str) -> None:
    examples, one = held_out_examples(name, reference), task(name)
    assert len({example.prompt for example in examples}) == len(examples) == FEW.get(name, 1000)
    assert {example.task for example in examples} == {name}
    assert {len(example.prompt) for example in examples} == {one.prompt_width}
    assert {example.gen_length for example in examples} == {one.answer_width}
    assert {example.match for example in examples} == {one.match}


@each_reference
def test_calibration_prompts_are_training_prompts(reference: Reference) -> None:
    examples = calibration_examples(reference)
    counts = Counter(example.task for example in examples)
    assert sorted(counts) == held_out_tasks(reference)
    assert sum(counts.values()) == 1024
    assert max(counts.values()) - min(counts.values()) <= 1
    assert not any(is_held_out(example.prompt) for example in examples)


@each_reference
def test_all_tasks_together(reference: Reference) -> None:
    names = held_out_tasks(reference)
    one_by_one = [e for name in names for e in held_out_examples(name, reference)]
    assert held_out_examples(name=reference) == one_by_one


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'words': known are addition, brackets"):
        held_out_examples("words")
    with pytest.raises(ValueError, match="'two': known are one-step, steps"):
        reference_folder("two")  # type: ignore[arg-type]
