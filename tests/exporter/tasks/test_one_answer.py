"""Each problem is in its format, and its answer right by an independent check."""

import itertools
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.tasks.one_answer import (
    MOST_CLOSING,
    add,
    chain,
    close_brackets,
    reverse,
    sort_digits,
    tell_story,
)


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


def chain_holds(prompt: str, answer: str) -> bool:
    first, second = re.fullmatch(r"(\d+)#(\d+)", answer).groups()  # type: ignore[union-attr]
    start, one, by, two, more = re.fullmatch(  # type: ignore[union-attr]
        r"C(\d+)([+-])(\d+)([+-])(\d+)=", prompt
    ).groups()
    steps = int(first) - int(start), int(second) - int(first)
    return steps == (int(one + by), int(two + more)) and int(first) > 0


Draw = Callable[[random.Random], tuple[str, str]]
HOLDS: list[tuple[Draw, Callable[[str, str], bool]]] = [
    (add, addition_holds),
    (sort_digits, sorting_holds),
    (reverse, reversing_holds),
    (close_brackets, brackets_hold),
    (tell_story, words_hold),
    (chain, chain_holds),
]


@pytest.mark.parametrize(("draw", "holds"), HOLDS, ids=[draw.__name__ for draw, _ in HOLDS])
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_answers_are_right(draw: Draw, holds: Callable[[str, str], bool], seed: int) -> None:
    assert holds(*draw(random.Random(seed)))


def test_brackets_never_ask_for_more_than_there_is_place_for() -> None:
    rng = random.Random(0)
    longest = max(len(close_brackets(rng)[1]) for _ in range(5000))
    assert longest == MOST_CLOSING
