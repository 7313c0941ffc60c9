"""Reductions of logits that arrive a slice of the vocabulary at a time, in float64.

The twin of what the graphs compute (graph.py): id1, l1, l2, rest, rest_t, entropy, the top K, and
l_held, the logit of a token that is given for each row.
Odds are relative to the best logit, d_j = l_j − l_1 + b_j, where b_j biases the odds but not the
choice: rest = Σ_{j≠1} exp(d_j), p_1 = 1 / (1 + rest),
entropy = ln(1 + rest) − Σ d_j exp(d_j) / (1 + rest).
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.generic]

SUPPRESSED = -1e4  # added to logits that must never win; exp() of it is 0 in fp32


@dataclass
class Slice:
    """Sums over one slice for N rows; odds are relative to the slice's own best logit."""

    best: torch.Tensor  # (N,)
    id: torch.Tensor
    bias: torch.Tensor  # of the best
    rest: torch.Tensor  # Σ exp(d), the best left out
    slope: torch.Tensor  # Σ d · exp(d), the best left out
    rest_t: torch.Tensor  # Σ exp(d / T), the best left out


@dataclass
class Reductions:
    """Collects slices; `results` joins them."""

    top_k: int  # 0: neither the top K nor l2
    temperature: float
    held: torch.Tensor  # (N,) ids
    slices: list[Slice] = field(default_factory=list)
    l_held: torch.Tensor | None = None  # (N,)
    top: tuple[torch.Tensor, torch.Tensor] | None = None  # logits and ids (N, ≤ K), descending

    def add(self, first: int, logits: torch.Tensor, bias: torch.Tensor) -> None:
        """Take in logits (N, C) float64 of the ids first … first+C−1 and their odds bias (C,)."""
        best, place = logits.max(-1)  # the lowest index on ties
        d = (logits - best[:, None] + bias).scatter(1, place[:, None], -torch.inf)
        odds = d.exp()
        slope = (odds * d.clamp_min(-1e30)).sum(-1)  # 0 · −1e30 = 0 where d is −inf
        rest_t = (d / self.temperature).exp().sum(-1)
        self.slices.append(Slice(best, place + first, bias[place], odds.sum(-1), slope, rest_t))
        self._add_held(first, logits)
        if self.top_k:
            self._add_top(first, logits)

    def _add_held(self, first: int, logits: torch.Tensor) -> None:
        old = torch.zeros_like(logits[:, 0]) if self.l_held is None else self.l_held
        place = self.held - first
        inside = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.l_held = torch.where(inside, found, old)

    def _add_top(self, first: int, logits: torch.Tensor) -> None:
        ids = torch.arange(first, first + logits.shape[1]).expand_as(logits)
        if self.top is not None:
            logits = torch.cat((self.top[0], logits), -1)
            ids = torch.cat((self.top[1], ids), -1)
        values, places = logits.sort(dim=-1, descending=True, stable=True)  # topk shuffles ties
        keep = slice(min(self.top_k, logits.shape[1]))
        self.top = values[:, keep], ids.gather(1, places[:, keep])

    def results(self) -> dict[str, Array]:
        """The reductions by the names of the graph outputs, (N,) or (N, K)."""
        best, ids, bias, rest, slope, rest_t = (
            torch.stack([getattr(s, name) for s in self.slices])
            for name in ("best", "id", "bias", "rest", "slope", "rest_t")
        )  # (slices, N)
        l1, winner = best.max(0)
        loser = torch.ones_like(best).scatter(0, winner[None], 0.0)  # the best counts unless it won
        step, t = best - l1, self.temperature
        top_odds = (step + bias).exp() * loser
        z = (step.exp() * rest + top_odds).sum(0)
        dz = step.exp() * (step * rest + slope) + top_odds * (step + bias)
        zt = ((step / t).exp() * rest_t + ((step + bias) / t).exp() * loser).sum(0)
        results = {
            "id1": ids.gather(0, winner[None])[0].numpy(),
            "l1": l1.numpy(),
            "rest": z.numpy(),
            "entropy": (torch.log1p(z) - dz.sum(0) / (1 + z)).numpy(),
            "rest_t": zt.numpy(),
        }
        if self.l_held is not None:
            results["l_held"] = self.l_held.numpy()
        if self.top is not None:
            values, top_ids = (part.numpy() for part in self.top)
            results |= {"l2": values[:, 1], "topk_ids": top_ids, "topk_logits": values}
        return results
