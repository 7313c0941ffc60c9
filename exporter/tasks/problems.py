"""The tasks: problems made on demand, for training and checking the reference models.

A problem is a prompt and a right answer, in the characters of the reference tokenizers. Prompts are
filled with `_` on the left to their task's width, because a model is trained on one canvas a task.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from exporter.tasks.many_answers import complete_latin, permute, split, split_answers
from exporter.tasks.matching import Match
from exporter.tasks.one_answer import add, chain, close_brackets, reverse, sort_digits, tell_story

Problem = tuple[str, str]  # prompt, answer


@dataclass(frozen=True)
class Task:
    """One kind of problem."""

    name: str
    draw: Callable[[random.Random], Problem]  # the prompt not yet filled
    prompt_width: int = 11  # characters of every prompt
    answer_width: int = 8  # tokens; what an answer leaves free is filled with <eos>
    match: Match = "exact"  # what else is a right answer
    answers: Callable[[str], list[str]] | None = None  # all right ones to a prompt, equally likely

    @property
    def widths(self) -> tuple[int, int]:
        """Characters of every prompt, tokens of every answer."""
        return self.prompt_width, self.answer_width

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


TASKS = (
    Task("addition", add),
    Task("sorting", sort_digits),
    Task("reversing", reverse),
    Task("brackets", close_brackets),
    Task("words", tell_story, prompt_width=24),
    Task("chain", chain),
    Task("split", split, match="sum", answers=split_answers),
    Task("permutation", permute, match="permutation"),
    Task("latin", complete_latin, prompt_width=18, answer_width=16, match="latin"),
)


def task(name: str) -> Task:
    """The task called `name`; ValueError when there is none."""
    for one in TASKS:
        if one.name == name:
            return one
    raise ValueError(f"unknown task {name!r}: known are {', '.join(t.name for t in TASKS)}")
