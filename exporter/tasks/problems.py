"""Problems with one right answer each, for training and checking the reference model.

A problem is a prompt and its answer, both in the 64 characters of the reference tokenizer. Prompts
are filled with `_` on the left to one width, because the model is trained on one prompt length.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

ANSWER_TOKENS = 8  # every answer fits; what it leaves free is filled with <eos>
CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PEOPLE = ("ann", "ben", "eva", "leo", "mia", "sam", "tom", "zoe")
GAINS = ("adds", "buys", "gets", "wins")
LOSSES = ("cuts", "eats", "pays", "uses")

Problem = tuple[str, str]  # prompt, answer


@dataclass(frozen=True)
class Task:
    """One kind of problem."""

    name: str
    prompt_width: int  # characters of every prompt
    draw: Callable[[random.Random], Problem]  # the prompt not yet filled

    def sample(self, rng: random.Random) -> Problem:
        """One problem, its prompt filled to `prompt_width`."""
        prompt, answer = self.draw(rng)
        return fill(prompt, self.prompt_width), answer

    def sample_split(self, rng: random.Random, held_out: bool) -> Problem:
        """One problem from the held-out prompts, or from the others."""
        while True:
            prompt, answer = self.sample(rng)
            if is_held_out(prompt) == held_out:
                return prompt, answer


def fill(prompt: str, width: int) -> str:
    """`prompt` filled with `_` on the left, or stripped of them, to `width` characters."""
    bare = prompt.lstrip("_")
    if len(bare) > width:
        raise ValueError(f"prompt {bare!r} has {len(bare)} characters, more than the width {width}")
    return bare.rjust(width, "_")


def is_held_out(prompt: str) -> bool:
    """Whether training must never see `prompt`: one in ten, whatever it is filled to.

    The rule also made the shipped files, so a model trained anew is judged on the same prompts.
    """
    return zlib.crc32(prompt.lstrip("_").encode()) % 10 == 0


def add(rng: random.Random) -> Problem:
    """`A123+456=` → `0579`: three digits plus three digits."""
    left, right = rng.randrange(1000), rng.randrange(1000)
    return f"A{left:03}+{right:03}=", f"{left + right:04}"


def sort_digits(rng: random.Random) -> Problem:
    """`S58982066=` → `02566889`."""
    digits = rng.choices("0123456789", k=8)
    return f"S{''.join(digits)}=", "".join(sorted(digits))


def reverse(rng: random.Random) -> Problem:
    """`Rbozp=` → `pzob`: four to eight letters."""
    word = "".join(rng.choices(LETTERS, k=rng.randint(4, 8)))
    return f"R{word}=", word[::-1]


def close_brackets(rng: random.Random) -> Problem:
    """`B{}[{=` → `}]`: what closes four to nine brackets, innermost first."""
    length = rng.randint(4, 9)
    text, missing = "", ""
    while len(text) < length:
        # An answer longer than its place would need nine open brackets: close one instead.
        if missing and (rng.random() < 0.4 or len(missing) == ANSWER_TOKENS):
            text, missing = text + missing[0], missing[1:]
        else:
            bracket = rng.choice(list(CLOSING))
            text, missing = text + bracket, CLOSING[bracket] + missing
    return f"B{text}=", missing


def tell_story(rng: random.Random) -> Problem:
    """`Wtom 12 gets 7 eats 3=` → `19#16`: two steps, the count after each; never below 0."""
    start = rng.randint(1, 99)
    text, counts = f"W{rng.choice(PEOPLE)} {start}", [start]
    for _ in range(2):
        gain = counts[-1] == 0 or rng.random() < 0.5
        change = rng.randint(1, 99 if gain else min(99, counts[-1]))
        text += f" {rng.choice(GAINS if gain else LOSSES)} {change}"
        counts.append(counts[-1] + change if gain else counts[-1] - change)
    return f"{text}=", f"{counts[1]}#{counts[2]}"


TASKS = (
    Task("addition", 11, add),
    Task("sorting", 11, sort_digits),
    Task("reversing", 11, reverse),
    Task("brackets", 11, close_brackets),
    Task("words", 24, tell_story),
)


def task(name: str) -> Task:
    """The task called `name`; ValueError when there is none."""
    for one in TASKS:
        if one.name == name:
            return one
    raise ValueError(f"unknown task {name!r}: known are {', '.join(t.name for t in TASKS)}")
