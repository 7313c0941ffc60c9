"""What building an engine needs to know of an ONNX file, read with the standard library alone.

An ONNX file is a protocol buffer: fields of number, type and value (protobuf.dev, "Encoding").
Numbers of the fields are those of onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .build_error import EngineError

VARINT, BYTES, FIXED = 0, 2, {1: 8, 5: 4}  # types of a field; of fixed ones the bytes, too
GRAPH, FUNCTION = 7, 25  # fields of a model
NODE, INITIALIZER, INPUT = 1, 5, 11  # of a graph
NODE_OF_FUNCTION, OP_TYPE, TENSOR_NAME = 7, 4, 8
NAME, TO_DIMENSION = 1, (2, 1, 2, 1)  # of a value: its type, tensor, shape, dimensions
SIZE = 1  # of a dimension; otherwise its name

Axes = list["int | str"]


@dataclass(frozen=True)
class OnnxFile:
    """Inputs by name, each axis as its size or its name; the types of all nodes."""

    inputs: dict[str, Axes]
    operators: frozenset[str]


def read_onnx(path: Path) -> OnnxFile:
    """Inputs and operators of an ONNX file. Raises EngineError where there is none."""
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:
        raise EngineError(f"{path} is missing", "Copy or build the bundle again") from None
    try:
        return _read(data)
    except (ValueError, IndexError) as error:
        reason = f"{path.name} is not understood: it is no ONNX file ({error})"
        raise EngineError(reason, "Copy or build the bundle again") from error


def _read(model: memoryview) -> OnnxFile:
    (graph,) = _parts(model, GRAPH)
    nodes = [*_parts(graph, NODE)]
    nodes += [node for f in _parts(model, FUNCTION) for node in _parts(f, NODE_OF_FUNCTION)]
    constants = {_text(t, TENSOR_NAME) for t in _parts(graph, INITIALIZER)}
    inputs = {_text(value, NAME): _axes(value) for value in _parts(graph, INPUT)}
    return OnnxFile(
        {name: axes for name, axes in inputs.items() if name not in constants},
        frozenset(_text(node, OP_TYPE) for node in nodes),
    )


def _axes(value: memoryview) -> Axes:
    parts = [value]
    for number in TO_DIMENSION:
        parts = [inner for part in parts for inner in _parts(part, number)]
    found = (next(_fields(part)) for part in parts)
    return [v if isinstance(v, int) else str(v, "utf-8") for _, v in found]


def _text(message: memoryview, number: int) -> str:
    return str(next(_parts(message, number), b""), "utf-8")


def _parts(message: memoryview, number: int) -> Iterator[memoryview]:
    """Every value of a field that is a text or a message itself."""
    return (v for n, v in _fields(message) if n == number and not isinstance(v, int))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field. Raises ValueError where these are no fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        size = FIXED.get(kind)
        if kind == BYTES:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError(f"a field of type {kind} before byte {at}")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at a byte, 7 bits a byte and the lowest first; where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
