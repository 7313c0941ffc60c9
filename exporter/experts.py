"""Which experts a token goes to, and with what weight: the router, in fp32."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from exporter.families import Experts

LEAST_SUM = 1e-20  # of the scores of chosen experts, by which they are divided


@dataclass(frozen=True, eq=False)
class Routing:
    """The experts of each token: their numbers and weights, both (T, per token)."""

    chosen: torch.Tensor
    weights: torch.Tensor

    def tokens(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens go to an expert, ascending, and their weights (n, 1)."""
        rows, place = (self.chosen == number).nonzero(as_tuple=True)
        return rows, self.weights[rows, place, None]


def route(experts: Experts, tensors: Mapping[str, torch.Tensor], x: torch.Tensor) -> Routing:
    """The routing of normed hidden states x (T, D).

    Scores are the softmax or the sigmoids of the router's logits. Experts are chosen by scores plus
    bias, if there is one; with groups of experts only out of the best groups, a group being as good
    as its two best experts together (DeepSeek-V3, arXiv 2412.19437, section 2.1.2, whose code has
    it so). What weighs an expert is its score, without the bias.
    """
    logits = F.linear(x.float(), tensors["router"].float())
    scores = logits.softmax(-1) if experts.score == "softmax" else logits.sigmoid()
    merit = scores + tensors["expert_bias"] if experts.selection_bias else scores
    if experts.top_groups < experts.groups:
        merit = _best_groups(experts, merit)
    chosen = merit.topk(experts.per_token, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if experts.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + LEAST_SUM)
    return Routing(chosen, weights * experts.scale)


def _best_groups(experts: Experts, merit: torch.Tensor) -> torch.Tensor:
    """merit (T, count), minus infinity outside of the best groups of each token."""
    by_group = merit.unflatten(-1, (experts.groups, -1))
    both = by_group.topk(min(2, by_group.shape[-1]), dim=-1).values.sum(-1)
    best = both.topk(experts.top_groups, dim=-1).indices
    kept = torch.zeros_like(both, dtype=torch.bool).scatter(-1, best, True)
    inside: torch.Tensor = by_group.masked_fill(~kept[..., None], -torch.inf)
    return inside.flatten(-2)
