"""The one external-data file that all graphs of a bundle share, written tensor by tensor."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import onnx_ir as ir
import torch

from exporter.errors import UserError
from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid

ALIGNMENT = 4096  # bytes; a page, so that a runtime can map single tensors


@dataclass(frozen=True)
class BlockForm:
    """How a block's activations are turned and rounded; the tensors for it are in the file."""

    transforms: dict[str, list[str]] = field(default_factory=dict)  # by group: tensor prefixes
    activations: dict[str, ActivationGrid] = field(default_factory=dict)  # by group
    attention: AttentionGrid | None = None

    @property
    def keeps_codes(self) -> bool:
        """Whether caches hold codes of its keys and values; see AttentionGrid."""
        return self.attention is not None and self.attention.keeps_codes


@dataclass(frozen=True)
class Stored:
    """What a weights file holds."""

    tensors: dict[str, ir.ExternalTensor] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)  # quantized linear -> inputs a scale
    blocks: list[BlockForm] = field(default_factory=list)


class WeightsFile:
    """Appends tensors to `file` and tells where they lie, as ONNX external tensors."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stored = Stored()
        self._stream = file.open("wb")
        self._digest = hashlib.sha256()

    def add(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], parts: Iterable[bytes]
    ) -> None:
        """Append one tensor given as `parts` of its raw row-major bytes (4-bit: packed)."""
        assert name not in self.stored.tensors
        self._write(b"\0" * (-self._stream.tell() % ALIGNMENT))
        start = self._stream.tell()
        for part in parts:
            self._write(part)
        length = self._stream.tell() - start
        self.stored.tensors[name] = ir.ExternalTensor(
            self.file.name,
            start,
            length,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self.file.parent,
        )

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)

    @property
    def sha256(self) -> str:
        """Digest of all bytes so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> "WeightsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


def as_bytes(name: str, tensor: torch.Tensor, dtype: ir.DataType) -> bytes:
    """`tensor` as bytes of the type. Raises UserError when fp16 would overflow."""
    return as_type(name, tensor, dtype).contiguous().numpy().tobytes()


def as_type(name: str, tensor: torch.Tensor, dtype: ir.DataType) -> torch.Tensor:
    """`tensor` in fp32, fp16, int8 or int64. Raises UserError when fp16 would overflow."""
    kinds = {
        ir.DataType.FLOAT: torch.float32,
        ir.DataType.FLOAT16: torch.float16,
        ir.DataType.INT8: torch.int8,
        ir.DataType.INT64: torch.int64,
    }
    out = tensor.to(kinds[dtype])
    if dtype == ir.DataType.FLOAT16 and not bool(torch.isfinite(out).all()):
        worst = float(tensor.abs().max())
        raise UserError(
            f"`{name}` holds a value of size {worst:g}, which fp16 cannot (largest is 65504)",
            "Use the recipe fp32",
        )
    return out
