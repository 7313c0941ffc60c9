"""Models of one node of ours, for any types, with or without the function that it stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from ort_ops.function_body import DOMAIN, OPSET

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Device:
    """A library of operators, if any, and the providers that run them."""

    library: Path | None = None
    providers: Sequence[str] = ("CPUExecutionProvider",)


@dataclass(frozen=True)
class OneNode:
    """A node: what it is fed, in order; `constants` are names of what the model holds."""

    name: str
    attributes: Mapping[str, int | float]
    inputs: Mapping[str, Array | ir.PackedTensor[Any]]
    outputs: Mapping[str, tuple[np.dtype[Any], Sequence[int]]]
    constants: frozenset[str] = frozenset()
    functions: Sequence[ir.Function] = field(default=())

    def model(self) -> bytes:
        tensors = {name: _tensor(x, name) for name, x in self.inputs.items()}
        values = {name: _value(name, t.dtype, t.shape.numpy()) for name, t in tensors.items()}
        for name in self.constants:
            values[name].const_value = tensors[name]
        attributes = dict(self.attributes)
        node = ir.node(
            self.name, list(values.values()), attributes=attributes, domain=DOMAIN,
            num_outputs=len(self.outputs),
        )  # fmt: skip
        for value, (name, (dtype, shape)) in zip(node.outputs, self.outputs.items(), strict=True):
            value.name, value.shape = name, ir.Shape(shape)
            value.type = ir.TensorType(ir.DataType.from_numpy(dtype))
        fed = [value for name, value in values.items() if name not in self.constants]
        kept = [values[name] for name in self.inputs if name in self.constants]
        graph = ir.Graph(
            fed, node.outputs, nodes=[node], initializers=kept, name="g",
            opset_imports={"": OPSET, DOMAIN: 1},
        )  # fmt: skip
        whole = ir.Model(graph, ir_version=11, functions=list(self.functions))
        serialized: bytes = ir.serde.serialize_model(whole).SerializeToString()
        return serialized

    def session(self, device: Device, optimized: Path | None = None) -> ort.InferenceSession:
        """`optimized`: file for the graph that runs."""
        options = ort.SessionOptions()
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # failures are raised as well
        if device.library is not None:
            options.register_custom_ops_library(str(device.library))
        return ort.InferenceSession(self.model(), options, providers=list(device.providers))

    @property
    def feeds(self) -> dict[str, Array]:
        return {n: np.asarray(x) for n, x in self.inputs.items() if n not in self.constants}

    def run(self, device: Device) -> list[Array]:
        """All outputs."""
        found = self.session(device).run(list(self.outputs), self.feeds)
        return [np.asarray(y) for y in found]


def _tensor(x: Array | ir.PackedTensor[Any], name: str) -> ir.TensorProtocol:
    tensor: ir.TensorProtocol = x if isinstance(x, ir.PackedTensor) else ir.tensor(x)
    tensor.name = name
    return tensor


def _value(name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
