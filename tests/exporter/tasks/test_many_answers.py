"""Answers are right by an independent check, and others than the one that is given are too."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from exporter.tasks.many_answers import complete_latin, permute, split
from exporter.tasks.matching import answers

SEEDS = st.integers(min_value=0, max_value=2**32)


@given(seed=SEEDS)
def test_parts_add_up_to_what_was_split(seed: int) -> None:
    prompt, answer = split(random.Random(seed))
    total, left, right = (int(n) for n in re.findall(r"\d+", prompt + answer))
    assert re.fullmatch(r"D\d{4}=", prompt)
    assert re.fullmatch(r"\d{3}\+\d{3}", answer)
    assert left + right == total
    assert answers("sum", prompt, answer, f"{right:03}+{left:03}")


def test_every_sum_of_two_numbers_is_asked_for() -> None:
    rng = random.Random(0)
    drawn = {split(rng)[0] for _ in range(40_000)}
    # One of 1999 sums is missed with probability e^-20 each.
    assert len(drawn) == 1999


@given(seed=SEEDS)
def test_permuted_letters_are_different_and_asked_for_in_order(seed: int) -> None:
    prompt, answer = permute(random.Random(seed))
    letters = re.fullmatch(r"P([a-z]{8})=", prompt)[1]  # type: ignore[index]
    assert len(set(letters)) == 8
    assert list(letters) == sorted(answer)
    assert answers("permutation", prompt, answer, answer[::-1])


@given(seed=SEEDS)
def test_squares_are_latin_and_keep_what_is_given(seed: int) -> None:
    prompt, answer = complete_latin(random.Random(seed))
    given_cells = re.fullmatch(r"L([1-4.]{16})=", prompt)[1]  # type: ignore[index]
    assert all(cell in (".", right) for cell, right in zip(given_cells, answer, strict=True))
    assert 7 <= given_cells.count(".") <= 13
    for line in range(4):
        assert set(answer[4 * line : 4 * line + 4]) == set(answer[line::4]) == set("1234")


def test_every_latin_square_is_drawn_as_often() -> None:
    rng = random.Random(0)
    counts: dict[str, int] = {}
    for _ in range(57_600):
        square = complete_latin(rng)[1]
        counts[square] = counts.get(square, 0) + 1
    # There are 576, each expected 100 times with deviation 10; six of it is one chance in 10^6.
    assert len(counts) == 576
    assert 40 <= min(counts.values()) <= max(counts.values()) <= 160
