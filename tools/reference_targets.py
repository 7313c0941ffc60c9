"""What a masked token should be predicted as: the token itself, or its exact distribution."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from exporter.tasks.problems import Problem, Task
from tools.reference_data import MASK, encode


def targets(
    tasks: Sequence[Task],
    problems: Sequence[Problem],
    clean: torch.Tensor,
    noisy: torch.Tensor,
    ids: dict[str, int],
    vocab: int,
) -> torch.Tensor:
    """Distributions (B, T, vocab) that the ids `clean` (B, T), masked to `noisy`, are drawn from.

    Where a task lists the right answers to a prompt: the share of each token among those that agree
    with all visible tokens. One answer is a single draw from these, so the mean of the gradient
    is the same and its variance smaller (Rao-Blackwell). Elsewhere all mass is on the token.
    """
    wanted = functional.one_hot(clean, vocab).float()
    for row, (task, (prompt, _)) in enumerate(zip(tasks, problems, strict=True)):
        if task.answers is None:
            continue
        every = [(prompt, answer) for answer in task.answers(prompt)]
        answers = encode(every, clean.shape[1] - len(prompt), ids)
        agree = ((answers == noisy[row]) | (noisy[row] == MASK)).all(-1)
        wanted[row] = functional.one_hot(answers[agree], vocab).float().mean(0)
    return wanted
