"""The buffers of one profile of an engine, and one execution over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .cuda_runtime import Cuda
from .device_buffers import StagedTensor
from .engine_facts import EngineFacts
from .errors import UserError
from .profiles import Profile, Shape


class Buffers:
    """Memory for all inputs and outputs at the largest shapes of a profile, caches aside."""

    def __init__(self, facts: EngineFacts, context: Any, cuda: Cuda, profile: Profile) -> None:
        for name in facts.inputs:
            set_shape(context, name, profile.most[name])
        check_shapes(context)
        given = [name for name in facts.inputs if name not in facts.kept]
        made = [name for name in facts.outputs if name.removesuffix("_out") not in facts.kept]
        self.inputs = {n: StagedTensor(cuda, profile.most[n], facts.type_of(n)) for n in given}
        self.outputs = {
            name: StagedTensor(cuda, tuple(context.get_tensor_shape(name)), facts.type_of(name))
            for name in made
        }


class BoundRun:
    """One execution: inputs to the device, the engine, the outputs `names` back to the host.

    Shapes and addresses are set once, here; calling it puts the work into the stream. `kept`:
    addresses of the caches by input name, changed in place. `shapes` of the outputs.
    """

    def __init__(
        self,
        facts: EngineFacts,
        context: Any,
        cuda: Cuda,
        buffers: Buffers,
        names: Sequence[str],
        shapes: Mapping[str, Shape],
        kept: Mapping[str, int],
    ) -> None:
        self._context, self._stream = context, int(cuda.stream)
        for name in facts.inputs:
            set_shape(context, name, shapes[name])
        check_shapes(context)
        tensors = buffers.inputs | buffers.outputs
        addresses = {name: tensor.address for name, tensor in tensors.items()}
        for name, address in kept.items():
            addresses |= {name: address, f"{name}_out": address}
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise UserError(f"TensorRT does not take a buffer for {name}")
        self.shapes = {name: tuple(context.get_tensor_shape(name)) for name in buffers.outputs}
        self._inputs = [(tensor, shapes[name]) for name, tensor in buffers.inputs.items()]
        self._outputs = [(buffers.outputs[name], self.shapes[name]) for name in names]

    def __call__(self) -> None:
        for tensor, shape in self._inputs:
            tensor.upload(shape)
        if not self._context.execute_async_v3(self._stream):
            raise UserError(
                "TensorRT could not run the engine", hint="its own message stands above"
            )
        for tensor, shape in self._outputs:
            tensor.download(shape)


def set_shape(context: Any, name: str, shape: Shape) -> None:
    """Set the shape of an input; UserError where the profile does not hold it."""
    if not context.set_input_shape(name, tuple(shape)):
        raise UserError(f"the engine takes no {name} of shape {'×'.join(map(str, shape))}")


def check_shapes(context: Any) -> None:
    """Raises UserError where the shape of an output does not follow from those of the inputs."""
    if unknown := context.infer_shapes():
        raise UserError(f"the engine needs to know more of {', '.join(unknown)}")
