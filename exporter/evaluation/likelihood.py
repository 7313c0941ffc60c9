"""The likelihood of an answer under a masked diffusion model, by Monte Carlo.

Nie et al., "Large Language Diffusion Models" (arXiv 2502.09992), eq. 6: with l of the L tokens of
the answer masked, l uniform in 1 … L and the places uniform,

    −log p(answer | prompt) ≤ E [ L / l · Σ_{i masked} −log p(answer_i | prompt, masked answer) ]

The l of one batch are spread evenly over 1 … L from a random start, as in the authors' code, so one
batch sees all noise levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporter.evaluation.raw_logits import Parts, RawLogits
from exporter.runtime.session import Bools, Floats, Ints


@dataclass(frozen=True)
class MonteCarlo:
    """How an expectation is estimated."""

    draws: int = 128
    batch: int = 16  # draws that are stratified together; divides `draws`
    seed: int = 0
    cfg_scale: float = 0.0

    def __post_init__(self) -> None:
        if self.draws < 1 or self.batch < 1 or self.draws % self.batch:
            raise ValueError(f"{self.draws} draws do not divide into batches of {self.batch}")


@dataclass(frozen=True)
class Estimate:
    """Log likelihood in nats; `error` is its standard error, None from a single batch."""

    log_likelihood: float
    error: float | None


def log_likelihood(
    logits: RawLogits,
    mask_id: int,
    prompt: Sequence[int],
    answer: Sequence[int],
    how: MonteCarlo,
    index: int,
) -> Estimate:
    """Estimate for one answer. Equal `index`es and lengths have equal masks: answers to one prompt
    are compared under the same noise, and so are two models.
    """
    if not answer:
        return Estimate(0.0, 0.0)
    rng = np.random.Generator(np.random.PCG64([how.seed, index]))
    clean = np.array([*prompt, *answer], np.int64)
    losses = []
    for _ in range(how.draws // how.batch):
        masked = np.zeros((how.batch, len(clean)), np.bool_)
        masked[:, len(prompt) :] = draw_masks(len(answer), how.batch, rng)
        losses.append(weighted_loss(logits, mask_id, clean, len(prompt), masked, how.cfg_scale))
    spread = float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else None
    return Estimate(-float(np.mean(losses)), spread)


def draw_masks(length: int, batch: int, rng: np.random.Generator) -> Bools:
    """(batch, length) masks: counts evenly spread over 1 … length from a random start."""
    start = rng.integers(1, length + 1)
    steps = np.rint(np.arange(batch) * length / batch).astype(np.int64)
    counts = (start - 1 + steps) % length + 1
    ranks = rng.permuted(np.tile(np.arange(length), (batch, 1)), axis=1)
    return np.asarray(ranks < counts[:, None])


def weighted_loss(
    logits: RawLogits, mask_id: int, clean: Ints, prompt_length: int, masked: Bools, scale: float
) -> float:
    """Mean over the rows of masked (n, S) of L / l times the cross entropies of its l masks."""
    rows = np.nonzero(masked)[0]
    share = masked.sum(1) / (len(clean) - prompt_length)
    losses = cross_entropy(logits, mask_id, clean, prompt_length, masked, scale)
    return float((losses / share[rows]).sum() / len(masked))


def cross_entropy(
    logits: RawLogits, mask_id: int, clean: Ints, prompt_length: int, masked: Bools, scale: float
) -> Floats:
    """−log p of the clean token at each place of masked (n, S), in nats, in row order (m,).

    `clean` (S,) is what stands under the masks. A guidance `scale` s > 0 takes u + (s + 1) (c − u),
    where u are the logits with the prompt masked too.
    """
    rows, positions = np.nonzero(masked)
    noisy = np.where(masked, mask_id, clean)
    parts = logits(noisy, rows, positions)
    if scale > 0:
        blind = noisy.copy()
        blind[:, :prompt_length] = mask_id
        parts = _guided(parts, logits(blind, rows, positions), scale)
    wanted = clean[positions]
    total, held = np.full(len(rows), -np.inf), np.zeros(len(rows))
    for which, first, part in parts:
        largest = part.max(1)
        sums = largest + np.log(np.exp(part - largest[:, None]).sum(1))
        total[which] = np.logaddexp(total[which], sums)
        token = wanted[which] - first
        inside = (token >= 0) & (token < part.shape[1])
        held[which[inside]] = part[inside, token[inside]]
    return total - held


def _guided(conditional: Parts, unconditional: Parts, scale: float) -> Parts:
    for (which, first, c), (_, _, u) in zip(conditional, unconditional, strict=True):
        yield which, first, u + (scale + 1) * (c - u)
