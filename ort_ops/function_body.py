"""Writes ONNX functions: the standard operators that a node of ours stands for."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

DOMAIN, OPSET = "dqexport", 24


class Body:
    """The nodes of a function while it is written.

    For models of an opset; `half`: those whose activations are fp16. What the function computes is
    in fp32 all the same.
    """

    def __init__(self, opset: int = OPSET, half: bool = False) -> None:
        self.opset, self.half = opset, half
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []

    def input(self, name: str) -> ir.Value:
        value = ir.Value(name=name)
        self._inputs.append(value)
        return value

    def floats(self, name: str) -> ir.Value:
        """An input of activations, in fp32."""
        return self.widened(self.input(name))

    def widened(self, x: ir.Value) -> ir.Value:
        """x, of activations, in fp32."""
        return self.op("Cast", x, to=int(ir.DataType.FLOAT)) if self.half else x

    def rounded(self, x: ir.Value) -> ir.Value:
        """x, in fp32, in the type of activations."""
        return self.op("Cast", x, to=int(ir.DataType.FLOAT16)) if self.half else x

    def op(self, kind: str, *inputs: ir.Value, **attributes: int | ir.Attr) -> ir.Value:
        given = [
            value if isinstance(value, ir.Attr) else ir.AttrInt64(name, value)
            for name, value in attributes.items()
        ]
        node = ir.Node("", kind, list(inputs), given, name=f"{kind}_{len(self._nodes)}")
        node.outputs[0].name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def constant(self, array: npt.NDArray[np.generic]) -> ir.Value:
        return self.op("Constant", value=ir.AttrTensor("value", ir.tensor(array)))

    def number(self, value: float) -> ir.Value:
        return self.constant(np.array(value, np.float32))

    def ints(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def attribute(self, name: str, kind: ir.AttributeType) -> ir.Value:
        """An attribute of the function as a scalar."""
        key = "value_float" if kind == ir.AttributeType.FLOAT else "value_int"
        return self.op("Constant", **{key: ir.RefAttr(key, name, kind)})

    def function(
        self,
        name: str,
        outputs: ir.Value | Sequence[ir.Value],
        attributes: Mapping[str, ir.AttributeType],
        activations: bool = True,
    ) -> ir.Function:
        """The finished function with the attributes that it refers to.

        `activations`: the first output is of these, computed in fp32.
        """
        first, *others = [outputs] if isinstance(outputs, ir.Value) else outputs
        if activations:
            first = self.rounded(first)
        versions = {"": self.opset}
        graph = ir.Graph(self._inputs, [first, *others], nodes=self._nodes, opset_imports=versions)
        declared = [ir.Attr(name, kind, None) for name, kind in attributes.items()]
        return ir.Function(DOMAIN, name, graph=graph, attributes=declared)
