"""Prompts of calibration and gate: from files, from the reference tasks, or made up."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import UserError
from exporter.prompts import RANDOM_LENGTH, read_prompts, used_vocabulary
from exporter.tasks import calibration_examples, held_out_examples, reference_folder
from tests.fixtures_lower import golden, golden_variant, write_word_tokenizer

WORDS = 150


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A golden checkpoint with a tokenizer of the words w0 … w149."""
    folder = golden_variant("llada", tmp_path_factory.mktemp("worded") / "a")
    write_word_tokenizer(folder, WORDS)
    return open_checkpoint(folder)


def write_ids(file: Path, prompts: list[list[int]]) -> Path:
    file.write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in prompts))
    return file


def test_text_is_encoded_as_the_loop_does(worded: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("w1 w2 w3\n\nw4 <mask> w5\nw6\n")
    found = read_prompts(worded, file, 2, 1, seed=0)
    assert sorted(found.calibration + found.held_out) == [(1, 2, 3), (4, 200, 5), (6,)]
    assert (len(found.calibration), len(found.held_out)) == (2, 1)
    assert found.source == "prompts.txt"


def test_a_chat_template_is_applied(tmp_path: Path) -> None:
    folder = golden_variant("llada", tmp_path / "a")
    write_word_tokenizer(folder, WORDS)
    template = "w10 {{ messages[0]['content'] }} w11"
    (folder / "chat_template.jinja").write_text(template)
    file = tmp_path / "prompts.txt"
    file.write_text("w1\nw2\n")
    found = read_prompts(open_checkpoint(folder), file, 1, 1, seed=0)
    assert sorted(found.calibration + found.held_out) == [(10, 1, 11), (10, 2, 11)]


def test_ids_need_no_tokenizer(tmp_path: Path) -> None:
    file = write_ids(tmp_path / "prompts.jsonl", [[5, 7, 9], [1], [207, 0]])
    found = read_prompts(golden("llada"), file, 2, 1, seed=0)
    assert sorted(found.calibration + found.held_out) == [(1,), (5, 7, 9), (207, 0)]


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("hello\n")
    with pytest.raises(UserError, match=r"prompts\.txt` holds text, but .* no tokenizer") as error:
        read_prompts(golden("llada"), file, 1, 1, seed=0)
    assert '{"ids": [5, 7, 9]}' in error.value.hint


def test_ids_of_another_model_are_refused(tmp_path: Path) -> None:
    file = write_ids(tmp_path / "prompts.jsonl", [[5, 208, 9]])
    with pytest.raises(UserError, match=r"ids \[5, 208, 9\].*, outside of 0 … 207"):
        read_prompts(golden("llada"), file, 1, 1, seed=0)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=30),
    calibrate=st.integers(1, 20),
    check=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_the_gate_sees_no_prompt_of_calibration(
    prompts: list[list[int]], calibrate: int, check: int, seed: int, tmp_path: Path
) -> None:
    """Whatever the file holds, repeated prompts among them; one prompt has to serve for both."""
    file = write_ids(tmp_path / "prompts.jsonl", prompts)
    found = read_prompts(golden("llada"), file, calibrate, check, seed)
    distinct = {tuple(ids) for ids in prompts}
    assert set(found.calibration) | set(found.held_out) <= distinct
    assert 1 <= len(found.calibration) <= calibrate
    assert 1 <= len(found.held_out) <= check
    if len(distinct) > 1:
        assert not set(found.calibration) & set(found.held_out)
    if len(distinct) >= max(calibrate + check, 4 * check):  # a quarter at most is held out
        assert (len(found.calibration), len(found.held_out)) == (calibrate, check)
    assert found == read_prompts(golden("llada"), file, calibrate, check, seed)


def test_a_checkpoint_brings_its_own_tasks() -> None:
    """The second reference has answers of 8 and of 16 tokens: those of the gate are all alike."""
    steps = open_checkpoint(reference_folder("steps"))
    found = read_prompts(steps, None, 64, 32, seed=0, gen_length=16)
    assert set(found.lengths) == {8, 16}
    assert {len(ids) for ids in found.held_out} == {18}  # the prompts of Latin squares
    assert {len(ids) for ids in read_prompts(steps, None, 1, 32, 0, 8).held_out} == {11}


def test_reference_tasks_are_the_default(tmp_path: Path) -> None:
    reference = open_checkpoint(reference_folder())
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((reference.folder / name).read_bytes())
    bare = read_prompts(open_checkpoint(tmp_path), None, 32, 16, seed=0)
    assert bare.source == "reference tasks"
    found = read_prompts(reference, None, 32, 16, seed=0)
    assert (len(found.calibration), len(found.held_out)) == (32, 16)
    assert set(found.lengths) == {8}
    unsaid = (None,) * 32  # another model's answers may be of any length
    assert replace(bare, source=found.source, lengths=found.lengths) == found
    assert bare.lengths == unsaid
    assert not set(found.calibration) & set(found.held_out)
    other = read_prompts(reference, None, 32, 16, seed=1)
    assert other.calibration != found.calibration
    assert other.held_out != found.held_out


def test_no_reference_prompt_is_in_both_sets() -> None:
    known = {example.prompt for example in calibration_examples()}
    assert not known & {example.prompt for example in held_out_examples()}


def test_more_calibration_prompts_than_there_are_is_all_of_them() -> None:
    found = read_prompts(open_checkpoint(reference_folder()), None, 10**6, 1, seed=0)
    assert len(found.calibration) == len(calibration_examples())


def test_more_gate_prompts_than_there_are_is_all_of_them() -> None:
    found = read_prompts(open_checkpoint(reference_folder()), None, 1, 10**6, seed=0)
    assert len(found.held_out) == len(held_out_examples())


def test_without_tokenizer_and_file_prompts_are_made_up() -> None:
    checkpoint = golden("dream")
    found = read_prompts(checkpoint, None, 20, 5, seed=0)
    everything = found.calibration + found.held_out
    assert (len(found.calibration), len(found.held_out)) == (20, 5)
    assert len(set(everything)) == 25
    assert {len(ids) for ids in everything} == {RANDOM_LENGTH}
    seen = {i for ids in everything for i in ids}
    assert not seen & {checkpoint.spec.mask_id, checkpoint.spec.pad_id}
    assert not seen & set(checkpoint.spec.special_ids)
    assert max(seen) < checkpoint.spec.vocab_size
    assert found == read_prompts(checkpoint, None, 20, 5, seed=0)
    assert found != read_prompts(checkpoint, None, 20, 5, seed=1)


def test_drawing_leaves_the_global_generator_alone() -> None:
    random.seed(0)
    before = random.getstate()
    read_prompts(golden("dream"), None, 3, 2, seed=7)
    assert random.getstate() == before


def test_the_tokenizer_tells_which_ids_are_used(worded: Checkpoint, tmp_path: Path) -> None:
    assert used_vocabulary(worded) == WORDS
    assert used_vocabulary(golden("llada")) == 208
    folder = golden_variant("llada", tmp_path / "a")
    write_word_tokenizer(folder, 500)
    assert used_vocabulary(open_checkpoint(folder)) == 208  # the head has no more rows
