"""Each task makes prompts in its format whose answers are right by an independent check."""

import itertools
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from exporter.tasks import TASKS, Task, held_out_examples, reference_folder, task
from exporter.tasks.problems import ANSWER_TOKENS, fill, is_held_out

each_task = pytest.mark.parametrize("one", TASKS, ids=[t.name for t in TASKS])
SEEDS = st.integers(min_value=0, max_value=2**32)


def addition_holds(prompt: str, answer: str) -> bool:
    left, right = re.fullmatch(r"A(\d{3})\+(\d{3})=", prompt).groups()  # type: ignore[union-attr]
    return len(answer) == 4 and int(answer) - int(left) == int(right)


def sorting_holds(prompt: str, answer: str) -> bool:
    counts = [prompt.count(digit) for digit in "0123456789"]
    rising = all(a <= b for a, b in itertools.pairwise(answer))
    return rising and counts == [answer.count(digit) for digit in "0123456789"] and sum(counts) == 8


def reversing_holds(prompt: str, answer: str) -> bool:
    word = re.fullmatch(r"R([a-z]{4,8})=", prompt)
    return word is not None and list(word[1]) == list(reversed(answer))


def brackets_hold(prompt: str, answer: str) -> bool:
    text = prompt[1:-1] + answer
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
        text = shorter
    return text == "" and 4 <= len(prompt) - 2 <= 9 and not set(answer) & set("([{<")


def words_hold(prompt: str, answer: str) -> bool:
    gain = "adds|buys|gets|wins"
    loss = "cuts|eats|pays|uses"
    form = rf"W[a-z]{{3}} (\d+) ({gain}|{loss}) (\d+) ({gain}|{loss}) (\d+)="
    start, verb, by, then, more = re.fullmatch(form, prompt).groups()  # type: ignore[union-attr]
    first = int(start) + (int(by) if verb in gain else -int(by))
    second = first + (int(more) if then in gain else -int(more))
    return answer == f"{first}#{second}" and min(first, second) >= 0


HOLDS: dict[str, Callable[[str, str], bool]] = {
    "addition": addition_holds,
    "sorting": sorting_holds,
    "reversing": reversing_holds,
    "brackets": brackets_hold,
    "words": words_hold,
}


@each_task
@given(seed=SEEDS)
def test_answers_are_right_and_fit(one: Task, seed: int) -> None:
    prompt, answer = one.sample(random.Random(seed))
    assert len(prompt) == one.prompt_width <= 24
    assert len(answer) <= ANSWER_TOKENS
    assert HOLDS[one.name](prompt.lstrip("_"), answer)


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


def test_split_is_the_one_of_the_shipped_prompts() -> None:
    assert all(is_held_out(example.prompt) for example in held_out_examples())


def test_a_prompt_is_never_cut() -> None:
    with pytest.raises(ValueError, match="'A12' has 3 characters, more than the width 2"):
        fill("__A12", 2)


@each_task
def test_tokenizer_knows_every_character(one: Task) -> None:
    tokenizer = Tokenizer.from_file(str(reference_folder() / "tokenizer.json"))
    unknown = tokenizer.token_to_id("<unk>")
    rng = random.Random(1)
    for prompt, answer in (one.sample(rng) for _ in range(100)):
        ids = tokenizer.encode(prompt + answer).ids
        assert len(ids) == len(prompt + answer)
        assert unknown not in ids


def test_tasks_are_found_by_name() -> None:
    assert task("sorting").prompt_width == 11
    with pytest.raises(ValueError, match="'sort': known are addition, sorting"):
        task("sort")
