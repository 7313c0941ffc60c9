"""Which graphs a bundle has, and what each returns."""

from dataclasses import dataclass

GRAPHS = "graphs"  # folder in a bundle


@dataclass(frozen=True)
class GraphKind:
    """Which of the graphs of a bundle."""

    guided: bool = False  # two rows a sequence: conditional and unconditional (classifier-free)
    sample: bool = False  # also second best, entropy, top K and the odds at a temperature
    logits: bool = False  # also raw logits of all positions that are fed, for debugging
    cached: bool = False  # keys and values are kept between calls, and only some positions fed
    shadow: bool = False  # tokens of a block are predicted without seeing themselves

    @property
    def name(self) -> str:
        return (
            ("cached" if self.cached else "full")
            + "-guided" * self.guided
            + "-sample" * self.sample
            + "-shadow" * self.shadow
        )

    @property
    def reductions(self) -> list[str]:
        """What it returns of the logits, in order."""
        more = ["l2", "entropy", "topk_ids", "topk_logits", "rest_t"]
        held = "l_unseen" if self.shadow else "l_held"
        return ["id1", "l1", "rest", held, *(more if self.sample else [])]

    @property
    def outputs(self) -> list[str]:
        """All that it returns, in order; a cached graph also returns its cache, before this."""
        return [*self.reductions, *["logits"] * self.logits]


def graph_kinds(logits: bool, shadow: bool = False) -> list[GraphKind]:
    """All graphs of a bundle, the cheapest first; `logits` adds raw logits.

    `shadow`: also the one for models with full attention and no shift.
    """
    either = (False, True)
    kinds = [GraphKind(g, s, logits, c) for c in either for g in either for s in either]
    return kinds + [GraphKind(shadow=True)] * shadow
