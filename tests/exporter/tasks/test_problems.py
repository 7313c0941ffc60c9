"""Every task draws problems that fit it, by seed, from one side of a split that never changes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from exporter.tasks import (
    TASKS,
    Example,
    Reference,
    Task,
    calibration_examples,
    held_out_examples,
    held_out_tasks,
    is_correct,
    reference_folder,
    task,
)
from exporter.tasks.problems import fill, is_held_out

each_task = pytest.mark.parametrize("one", TASKS, ids=[t.name for t in TASKS])
REFERENCES: tuple[Reference, ...] = ("one-step", "steps")
each_reference = pytest.mark.parametrize("reference", REFERENCES)
SEEDS = st.integers(min_value=0, max_value=2**32)


@each_task
@given(seed=SEEDS)
def test_answers_fit_and_pass_their_own_match(one: Task, seed: int) -> None:
    prompt, answer = one.sample(random.Random(seed))
    assert len(prompt) == one.prompt_width
    assert len(answer) <= one.answer_width
    example = Example(one.name, prompt, answer, one.answer_width, one.match)
    assert is_correct(example, answer)
    assert not is_correct(example, answer + "?")


@each_task
def test_equal_seeds_give_equal_problems_and_seeds_differ(one: Task) -> None:
    assert one.sample(random.Random(3)) == one.sample(random.Random(3))
    rng = random.Random(3)
    drawn = {one.sample(rng)[0] for _ in range(200)}
    assert len(drawn) > 150  # the smallest space, brackets of length 4, is drawn one time in six


@each_task
@pytest.mark.parametrize("held_out", [True, False])
def test_split_is_kept(one: Task, held_out: bool) -> None:
    rng = random.Random(0)
    prompts = [one.sample_split(rng, held_out)[0] for _ in range(50)]
    assert all(is_held_out(prompt) == held_out for prompt in prompts)


@given(text=st.text(alphabet="ABRS0123456789=", max_size=20), extra=st.integers(0, 9))
def test_split_does_not_depend_on_filling(text: str, extra: int) -> None:
    wide = fill(text, len(text) + extra)
    assert len(wide) == len(text) + extra
    assert fill(wide, len(text)) == text
    assert is_held_out(wide) == is_held_out(text)


@each_reference
def test_split_is_the_one_of_the_shipped_prompts(reference: Reference) -> None:
    assert all(is_held_out(example.prompt) for example in held_out_examples(name=reference))
    assert not any(is_held_out(example.prompt) for example in calibration_examples(reference))


def test_a_prompt_is_never_cut() -> None:
    with pytest.raises(ValueError, match="'A12' has 3 characters, more than the width 2"):
        fill("__A12", 2)


@each_reference
def test_tokenizer_knows_every_character_of_its_tasks(reference: Reference) -> None:
    tokenizer = Tokenizer.from_file(str(reference_folder(reference) / "tokenizer.json"))
    unknown = tokenizer.token_to_id("<unk>")
    rng = random.Random(1)
    for name in held_out_tasks(reference):
        for prompt, answer in (task(name).sample(rng) for _ in range(100)):
            ids = tokenizer.encode(prompt + answer).ids
            assert len(ids) == len(prompt + answer)
            assert unknown not in ids


def test_tasks_are_found_by_name() -> None:
    assert task("sorting").prompt_width == 11
    with pytest.raises(ValueError, match="'sort': known are addition, sorting"):
        task("sort")
