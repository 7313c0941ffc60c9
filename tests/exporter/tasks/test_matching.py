"""Each rule accepts what is right and refuses what is nearly right."""

import pytest

from exporter.tasks.matching import Match, answers

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
    ],
)
def test_wrong(match: Match, prompt: str, answer: str, text: str) -> None:
    assert not answers(match, prompt, answer, text)
