"""The shipped prompts are those that the package's own tasks make."""

from collections import Counter

import pytest

from exporter.tasks import calibration_examples, held_out_examples, held_out_tasks, reference_folder
from exporter.tasks.problems import ANSWER_TOKENS, is_held_out, task


def test_checkpoint_is_complete() -> None:
    names = {path.name for path in reference_folder().iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert expected <= names


@pytest.mark.parametrize("name", held_out_tasks())
def test_held_out_prompts(name: str) -> None:
    examples = held_out_examples(name)
    assert len({example.prompt for example in examples}) == 1000
    assert {example.task for example in examples} == {name}
    assert {len(example.prompt) for example in examples} == {task(name).prompt_width}
    assert {example.gen_length for example in examples} == {ANSWER_TOKENS}


def test_calibration_prompts_are_training_prompts() -> None:
    examples = calibration_examples()
    assert Counter(example.task for example in examples) == dict.fromkeys(held_out_tasks(), 256)
    assert not any(is_held_out(example.prompt) for example in examples)


def test_all_tasks_together_and_unknown_task() -> None:
    everything = held_out_examples()
    assert everything == [e for name in held_out_tasks() for e in held_out_examples(name)]
    with pytest.raises(ValueError, match="'words': known are addition, brackets"):
        held_out_examples("words")
