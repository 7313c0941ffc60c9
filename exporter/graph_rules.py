"""What a runtime can read in a graph, where that is less than the operators' definitions."""

from dataclasses import dataclass

from ort_ops.function_body import OPSET
from targets import Target


@dataclass(frozen=True)
class GraphRules:
    """The defaults are what ONNX Runtime reads.

    `capacity`: positions of the buffers of cached graphs; None: as many as the caller makes.
    """

    opset: int = OPSET  # below 23 older operators stand for norms, positions and attention
    capacity: int | None = None
    heads_apart: bool = False  # Attention takes queries, keys and values by heads, on four axes
    counts_in_floats: bool = False  # CumSum takes floats alone
    sorts_by_counting: bool = False  # TopK takes no more than 3840
    codes_by_scales: bool = False  # int8 comes from QuantizeLinear and goes to DequantizeLinear


PLAIN = GraphRules()


def rules_of(target: Target, canvas: int) -> GraphRules:
    """The rules of a target, for canvases of at most `canvas` tokens.

    Parsers of TensorRT and TensorRT for RTX share theirs (onnx-tensorrt, docs/operators.md of
    10.15); what they differ in are properties of the target.
    """
    parser = target.runtime != "onnxruntime"
    return GraphRules(
        opset=min(target.opset, OPSET) if target.native_attention else min(target.opset, 21),
        capacity=canvas if target.fixed_capacity else None,
        heads_apart=parser,
        counts_in_floats=parser,
        sorts_by_counting=parser,
        codes_by_scales=parser,
    )
