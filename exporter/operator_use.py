"""Which linears of a graph run as operators of ours (`ort_ops`), and in which formats."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OperatorUse:
    """The rule: every quantized linear whose format has an operator.

    `tools.bench_linear` is the measurement behind it: ONNX Runtime's own kernels are faster only on
    weights unpacked to bytes, by a few percent on large linears, for twice the memory.

    `activation_bits`: of linears whose recipe leaves activations in float; 16 keeps them to
    within 2^-16 of a group's largest, 8 is what MatMulNBits does at accuracy level 4.
    """

    activation_bits: int = 16
