"""Calls of ONNX Runtime whose inputs and outputs stay where it computes, kept by their shapes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .session import Array

if TYPE_CHECKING:
    import onnxruntime as ort

TYPES: dict[str, npt.DTypeLike] = {  # by the names of ONNX Runtime's types
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
MOST = 64  # calls whose buffers are kept; there are few shapes where windows are lengthened
RECORDINGS = 32  # CUDA graphs: ONNX Runtime gives none of them back before the session ends
OFF = -1  # as the number of a CUDA graph
Sizes = Mapping[str, int]  # of axes, by the names that the graph gives them


class DeviceCalls:
    """Runs a session with buffers on `device` that are made once for each shape.

    With `record`, for a session with the provider option `enable_cuda_graph`: calls that come again
    with the same shapes and buffers become a CUDA graph, whose addresses must stay.
    """

    def __init__(self, session: ort.InferenceSession, device: str, record: bool) -> None:
        self._session, self.device, self._record = session, device, record
        self._calls: OrderedDict[Hashable, _Call] = OrderedDict()
        self.recordings = 0

    def run(
        self,
        names: Sequence[str],
        feeds: Mapping[str, Array],
        sizes: Sizes,
        kept: Mapping[str, ort.OrtValue],
    ) -> list[Array]:
        """The outputs `names`; `kept` values are inputs and outputs at once, changed in place.

        `sizes` of the axes that shapes of outputs name.
        """
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        key = (tuple(names), shapes, tuple(value.data_ptr() for value in kept.values()))
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(self._session, self.device, names, feeds, sizes, kept)
            if len(self._calls) > MOST:
                self._calls.popitem(last=False)
        elif call.number == OFF and self._record and self.recordings < RECORDINGS:
            self.recordings += 1
            call.number = self.recordings  # 0 would mean that no number is given
        self._calls.move_to_end(key)
        return call(feeds, self._record)


class _Call:
    """One binding with its buffers; `number` of its CUDA graph."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        names: Sequence[str],
        feeds: Mapping[str, Array],
        sizes: Sizes,
        kept: Mapping[str, ort.OrtValue],
    ) -> None:
        import onnxruntime as ort

        self._session, self.number = session, OFF
        self._binding = session.io_binding()
        self._inputs = {  # of copies: values on the CPU share the memory that they are made of
            name: ort.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)
            for name, array in feeds.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        outputs = {value.name: value for value in session.get_outputs()}
        self._outputs = []
        for name in names:
            shape = [sizes.get(size, size) for size in outputs[name].shape]
            made = ort.OrtValue.ortvalue_from_shape_and_type(
                shape, TYPES[outputs[name].type], device, 0
            )
            self._binding.bind_ortvalue_output(name, made)
            self._outputs.append(made)
        self._kept = dict(kept)
        for name, value in kept.items():
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(f"{name}_out", value)

    def __call__(self, feeds: Mapping[str, Array], record: bool) -> list[Array]:
        import onnxruntime as ort

        for name, array in feeds.items():
            self._inputs[name].update_inplace(array)
        options = ort.RunOptions()
        if record:
            options.add_run_config_entry("gpu_graph_id", str(self.number))
        self._session.run_with_iobinding(self._binding, options)
        return [value.numpy().copy() for value in self._outputs]
