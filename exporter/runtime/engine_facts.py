"""What a deserialized engine tells of itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .profiles import Shape, profiles_of

TYPES: dict[str, npt.DTypeLike] = {  # by the names of TensorRT's types
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


class EngineFacts:
    """A deserialized engine: its tensors, types and profiles."""

    def __init__(self, trt: Any, engine: Any) -> None:
        self._engine = engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self.kept = [name for name in self.inputs if f"{name}_out" in self.outputs]
        self.profiles = profiles_of(engine, self.inputs)
        mask = self.shape_of("key_mask", 1)
        self.capacity = mask[1] if self.kept else None  # of the caches, where there are some

    def shape_of(self, name: str, rows: int) -> Shape:
        """The shape of a tensor whose first axis counts the rows, with the others as they stand."""
        _, *others = self._engine.get_tensor_shape(name)
        return (rows, *others)

    def bytes_of(self, name: str, rows: int) -> int:
        """Bytes of that."""
        return math.prod(self.shape_of(name, rows)) * np.dtype(self.type_of(name)).itemsize

    def type_of(self, name: str) -> npt.DTypeLike:
        """The type of a tensor's elements."""
        return TYPES[self._engine.get_tensor_dtype(name).name]
