"""Which graphs a bundle has, and what each returns."""

from dataclasses import dataclass

GRAPHS = "graphs"  # folder in a bundle


@dataclass(frozen=True)
class GraphKind:
    """Which of the graphs of a bundle."""

    guided: bool = False  # two rows a sequence: conditional and unconditional (classifier-free)
    sample: bool = False  # also second best, entropy, top K and the odds at a temperature
    logits: bool = False  # also raw logits of all positions, for debugging

    @property
    def name(self) -> str:
        return "full" + "-guided" * self.guided + "-sample" * self.sample

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs in order."""
        extra = ["l2", "entropy", "topk_ids", "topk_logits", "rest_t"] if self.sample else []
        return ["id1", "l1", "rest", *extra, *(["logits"] if self.logits else [])]


def graph_kinds(logits: bool) -> list[GraphKind]:
    """All graphs of a full-attention bundle, the cheapest first; `logits` adds raw logits."""
    return [GraphKind(g, s, logits) for g in (False, True) for s in (False, True)]
