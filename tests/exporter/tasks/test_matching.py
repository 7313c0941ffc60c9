"""Each rule accepts what is right and refuses what is nearly right."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.tasks.matching import Match, answers, last_number

SQUARE = "1234214334124321"  # rows 1234 2143 3412 4321
RENAMED = SQUARE.translate(str.maketrans("12", "21"))  # as good, but its first cell is 2
GIVEN = "L1...2..........1="


@pytest.mark.parametrize(
    ("match", "prompt", "answer", "text"),
    [
        ("exact", "2+2=", "4", "4"),
        ("exact", "2+2=", "4", " 4\n"),
        ("exact", "B()=", "", ""),
        ("sum", "D0537=", "123+414", "123+414"),
        ("sum", "D0537=", "123+414", "100+437"),
        ("permutation", "Pabc=", "cab", "bca"),
        ("latin", GIVEN, SQUARE, SQUARE),
        ("latin", "L................=", SQUARE, RENAMED),
        ("numeric", "", "#### 1234", "so 18 dollars make $1,234.00."),
        ("numeric", "", "-3", "it is -3.0"),
        ("numeric", "", ".5", "0.50 of it"),
        ("numeric", "", "3", "10-3"),
        ("regex", "", "(?i)yes.*", " Yes,\nof course\n"),
        ("regex", "", r"\d+", "42"),
        ("code", "", "assert f(1) == 2", "Here:\n```python\ndef f(x):\n    return x + 1\n```"),
        ("code", "", "assert f(1) == 2", "f = lambda x: x + 1"),
    ],
)
def test_right(match: Match, prompt: str, answer: str, text: str) -> None:
    assert answers(match, prompt, answer, text)


@pytest.mark.parametrize(
    ("match", "prompt", "answer", "text"),
    [
        ("exact", "2+2=", "4", "44"),
        ("exact", "2+2=", "4", ""),
        ("sum", "D0537=", "123+414", "123+413"),
        ("sum", "D0537=", "123+414", "23+514"),  # the sum is right, the form is not
        ("sum", "D0537=", "123+414", "537"),
        ("sum", "D0537=", "123+414", "123+"),
        ("sum", "D0537=", "537", "x"),
        ("sum", "D0537=", "x", "537"),
        ("permutation", "Pabc=", "cab", "cca"),
        ("permutation", "Pabc=", "cab", "ca"),
        ("latin", GIVEN, SQUARE, SQUARE[:-1] + "2"),  # column 4 holds 2 twice
        ("latin", GIVEN, SQUARE, RENAMED),
        ("latin", GIVEN, SQUARE, SQUARE[:-1]),
        ("latin", "L1=", SQUARE, SQUARE),  # the prompt shows no square
        ("latin", GIVEN, SQUARE, "1" * 16),
        ("numeric", "", "#### 1234", "first 1234, then 5"),
        ("numeric", "", "1234", "1,2345"),
        ("numeric", "", "3", "-3"),
        ("numeric", "", "3", "none"),
        ("regex", "", r"\d+", "it is 42"),
        ("regex", "", "(a|a)*b", "a" * 40),  # 2 ** 40 ways to fail
        ("code", "", "assert f(1) == 2", "Here: f = lambda x: x + 1"),
        ("code", "", "assert f(1) == 2", "import sys; sys.exit(0)"),
    ],
)
def test_wrong(match: Match, prompt: str, answer: str, text: str) -> None:
    assert not answers(match, prompt, answer, text)


@given(
    st.decimals(min_value=-(10**9), max_value=10**9, places=2, allow_nan=False),
    st.sampled_from(["", "so ", "= ", "$"]),
    st.sampled_from(["", ".", " apples.", "%", ", thus"]),
    st.booleans(),
)
def test_a_number_is_read_however_it_is_written(
    number: Decimal, before: str, after: str, commas: bool
) -> None:
    written = f"{number:,}" if commas else f"{number}"
    if before == "$" and number < 0:
        written = f"-${written[1:]}"
    elif before == "$":
        written = f"${written}"
    else:
        written = before + written
    assert last_number("at 7:30, " + written + after) == number


def test_long_texts_take_no_time() -> None:
    start = time.monotonic()
    for text in ("1" * 100_000, "1," * 50_000, "1,111" * 20_000, "-$" * 50_000, "." * 100_000):
        last_number(text)
    # quadratic work on any of these would be 10 ** 10 steps
    assert time.monotonic() - start < 5
