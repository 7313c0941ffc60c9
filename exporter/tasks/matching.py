"""Whether a decoded text answers a prompt.

Many problems have one right answer, which is compared. Others have several (any order, any pair of
summands, any working program); these are checked by rule, so that a model is not called wrong for a
choice that is as good as another.
"""

import math
import re
from decimal import Decimal
from typing import Literal

from exporter.tasks.fenced import program_in
from exporter.tasks.sandbox import run_tests

Match = Literal["exact", "sum", "permutation", "latin", "numeric", "regex", "code"]

# a sign counts where nothing stands before it to subtract from: `10-3` ends in 3, not in -3
NUMBER = re.compile(
    r"(?:(?<![\w.,)$])[-−])?\$?"
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
REGEX_SECONDS = 2.0  # of one search: a pattern that backtracks without end matches nothing


def answers(match: Match, prompt: str, answer: str, text: str) -> bool:
    """Whether `text` is right for `prompt`, of which `answer` shows what is right.

    exact: equal. sum: two numbers, written as long as those of `answer`, with the same sum.
    permutation: the same characters in any order. latin: `answer` and `prompt` show a square of
    n × n cells, `.` empty; every row and column holds the same n symbols and given cells stay.
    numeric: the last numbers in both are equal; commas between thousands, a `$` before, zeros and
    a full stop behind do not matter. regex: the pattern `answer` matches the whole text (write `.*`
    for what may stand around it; `.` matches line ends), in a process of its own that may take
    REGEX_SECONDS. code: the tests `answer` run through after the program in `text`, see
    sandbox.py. White space around a text is ignored, but not in code.
    """
    if match == "code":
        return run_tests(program_in(text), answer)
    text = text.strip()
    if match == "regex":
        return _fits(answer, text)
    answer = answer.strip()
    if match == "exact":
        return text == answer
    if match == "numeric":
        return (wanted := last_number(answer)) is not None and wanted == last_number(text)
    if match == "sum":
        return _same_sum(answer, text)
    if match == "permutation":
        return sorted(text) == sorted(answer)
    return _latin(prompt, answer, text)


def last_number(text: str) -> Decimal | None:
    """The last number that is written in `text`, exactly; None when there is none."""
    written = list(NUMBER.finditer(text))
    if not written:
        return None
    size = Decimal(written[-1][1].replace(",", ""))
    return -size if written[-1][0][0] in "-−" else size


def _fits(pattern: str, text: str) -> bool:
    search = f"import re\nfound = re.fullmatch({pattern!r}, {text!r}, re.DOTALL)"
    return run_tests(search, "assert found", REGEX_SECONDS)


def _same_sum(answer: str, text: str) -> bool:
    if not all(re.fullmatch(r"[0-9]+(\+[0-9]+)*", one) for one in (answer, text)):
        return False
    wanted, parts = answer.split("+"), text.split("+")
    same_shape = [len(part) for part in parts] == [len(part) for part in wanted]
    return same_shape and sum(map(int, parts)) == sum(map(int, wanted))


def _latin(prompt: str, answer: str, text: str) -> bool:
    side = math.isqrt(len(answer))
    given = prompt.rstrip("=")[-side * side :]
    if not len(answer) == len(text) == len(given) == side * side:
        return False
    rows = [text[i : i + side] for i in range(0, side * side, side)]
    columns = [text[i::side] for i in range(side)]
    kept = all(cell in (".", filled) for cell, filled in zip(given, text, strict=True))
    return kept and all(set(line) == set(answer) for line in rows + columns)
