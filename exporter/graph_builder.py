"""Appends nodes to one ONNX graph."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporter.graph_rules import PLAIN, GraphRules
from exporter.operator_use import OperatorUse
from exporter.weights_file import Stored
from ort_ops.function_body import DOMAIN, Body
from passes.activations.grid import LEAST_SCALE

IR_VERSION = 11
FLOAT, HALF, INT64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64


class Builder:
    """Appends nodes to one graph; the only mutable thing while a graph is made."""

    def __init__(
        self,
        stored: Stored,
        compute: ir.DataType,
        name: str,
        kv_bits: int = 16,
        operators: OperatorUse | None = None,
        rules: GraphRules = PLAIN,
    ) -> None:
        self.tensors, self.groups, self.blocks = stored.tensors, stored.groups, stored.blocks
        self.compute, self.kv_bits, self.operators = compute, kv_bits, operators
        self.rules = rules
        self.capacity: int | str = rules.capacity or "C"  # positions of a cache
        self.functions: dict[str, ir.Function] = {}
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": rules.opset})
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(
        self, name: str, value: ir.Value, dtype: ir.DataType, shape: list[int | str]
    ) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.graph.outputs.append(value)

    def ops(
        self, kind: str, count: int, *inputs: ir.Value, **attributes: int | float | list[int]
    ) -> list[ir.Value]:
        node = ir.node(kind, list(inputs), attributes=attributes, num_outputs=count)
        self.graph.append(node)
        return list(node.outputs)

    def op(self, kind: str, *inputs: ir.Value, **attributes: int | float | list[int]) -> ir.Value:
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def own(
        self,
        name: str,
        body: Callable[[Body], ir.Function],
        *inputs: ir.Value,
        **attributes: int | float | str,
    ) -> ir.Value:
        """The one output of `owns`."""
        return self.owns(name, body, 1, *inputs, **attributes)[0]

    def owns(
        self,
        name: str,
        body: Callable[[Body], ir.Function],
        count: int,
        *inputs: ir.Value,
        **attributes: int | float | str,
    ) -> list[ir.Value]:
        """The `count` outputs of the operator `name` of ours; the model brings its function body.

        Where kernels are plugins of TensorRT the node says so: else the body would be taken.
        """
        assert self.operators is not None
        if name not in self.functions:
            self.functions[name] = body(Body(self.rules.opset, self.compute == HALF))
        if self.operators.plugins:
            attributes |= {"plugin_namespace": DOMAIN, "plugin_version": "1"}
        node = ir.node(name, list(inputs), attributes=attributes, domain=DOMAIN, num_outputs=count)
        self.graph.append(node)
        return list(node.outputs)

    def model(self) -> ir.Model:
        """The finished graph with the functions that it calls."""
        if self.functions:
            self.graph.opset_imports[DOMAIN] = 1
        return ir.Model(
            self.graph, ir_version=IR_VERSION, producer_name="dqexport",
            functions=list(self.functions.values()),
        )  # fmt: skip

    def cast(self, x: ir.Value, to: ir.DataType) -> ir.Value:
        return self.op("Cast", x, to=int(to))

    def weight(self, name: str) -> ir.Value:
        """A tensor of the weights file as initializer, one a graph."""
        return self._initializer(name, self.tensors[name])

    def default(self, name: str) -> ir.Value:
        """A tensor of the weights file that a caller may replace: an input that has a value."""
        value = self.weight(name)
        self.graph.inputs.append(value)
        return value

    def scale(self, name: str) -> ir.Value:
        """A float16 tensor of the file in the type of the arithmetic."""
        value = self.weight(name)
        return value if self.compute == HALF else self.cast(value, self.compute)  # folds at load

    def ints(self, values: list[int]) -> ir.Value:
        return self._constant("i" + "_".join(map(str, values)), np.array(values, np.int64))

    def table(self, name: str, values: list[int]) -> ir.Value:
        """Whole numbers that are too many to be their own name; their count belongs to it."""
        return self._constant(f"{name}_{len(values)}", np.array(values, np.int64))

    def int_scalar(self, value: int) -> ir.Value:
        return self._constant(f"int_{value}", np.array(value, np.int64))

    def floats(self, values: list[float]) -> ir.Value:
        return self._constant("f" + "_".join(map(str, values)), np.array(values, np.float32))

    def number(self, value: float) -> ir.Value:
        """A scalar in the type of the arithmetic."""
        kind = np.float16 if self.compute == HALF else np.float32
        return self._constant(f"number_{value!r}", np.array(value, kind))

    def zeros(self, count: int) -> ir.Value:
        kind = np.float16 if self.compute == HALF else np.float32
        return self._constant(f"zeros_{count}", np.zeros(count, kind))

    def int8_zero(self) -> ir.Value:
        return self._constant("int8_zero", np.array(0, np.int8))

    def _constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        return self._initializer(name, ir.tensor(array, name=name))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self._initializers:
            shape = ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape,
                             const_value=tensor)  # fmt: skip
            self.graph.register_initializer(value)
            self._initializers[name] = value
        return self._initializers[name]

    def rms_norm(self, x: ir.Value, weight: str, eps: float) -> ir.Value:
        """RMSNorm over the last axis; squares are summed in fp32 (stash type 1)."""
        if self.rules.opset < 23:
            wide = self.cast(x, FLOAT) if self.compute != FLOAT else x
            mean = self.op("ReduceMean", self.op("Mul", wide, wide), self.ints([-1]), keepdims=1)
            root = self.op("Sqrt", self.op("Add", mean, self.floats([eps])))
            normed = self.op("Div", wide, root)
            normed = self.cast(normed, self.compute) if self.compute != FLOAT else normed
            return self.op("Mul", normed, self.weight(weight))
        return self.op("RMSNormalization", x, self.weight(weight), axis=-1, epsilon=eps,
                       stash_type=1)  # fmt: skip

    def row_scale(self, x: ir.Value, top: int) -> ir.Value:
        """The scale (…, 1) on which the largest of each row of x (…, K) ≥ 0 is `top`."""
        largest = self.op("ReduceMax", x, self.ints([-1]), keepdims=1)
        scale = self.op("Mul", largest, self.number(1 / top))
        return self.op("Max", scale, self.number(LEAST_SCALE))
