"""Whether a decoded text answers a prompt.

Most problems have one right answer. Some have many (any order, any pair of summands); their answers
are checked by rule, so that a model is not called wrong for a choice that is as good as another.
"""

import math
import re
from typing import Literal

Match = Literal["exact", "sum", "permutation", "latin"]


def answers(match: Match, prompt: str, answer: str, text: str) -> bool:
    """Whether `text` is right for `prompt`, of which `answer` is one right answer.

    exact: equal. sum: two numbers, written as long as those of `answer`, with the same sum.
    permutation: the same characters in any order. latin: `answer` and `prompt` show a square of
    n × n cells, `.` empty; every row and column holds the same n symbols and given cells stay.
    White space around either is ignored.
    """
    text, answer = text.strip(), answer.strip()
    if match == "exact":
        return text == answer
    if match == "sum":
        return _same_sum(answer, text)
    if match == "permutation":
        return sorted(text) == sorted(answer)
    return _latin(prompt, answer, text)


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
