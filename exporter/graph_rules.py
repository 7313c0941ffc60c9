"""What a runtime can read in a graph, where that is less than the operators' definitions."""

from dataclasses import dataclass

from targets import Target


@dataclass(frozen=True)
class GraphRules:
    """`capacity`: positions of the buffers of cached graphs; None: as many as the caller makes."""

    capacity: int | None = None


PLAIN = GraphRules()  # ONNX Runtime reads all of it


def rules_of(target: Target, canvas: int) -> GraphRules:
    """The rules of a target, for canvases of at most `canvas` tokens."""
    return GraphRules(capacity=canvas if target.fixed_capacity else None)
