"""Reads safetensors files tensor by tensor with plain file reads.

The format is 8 bytes of header length, a JSON header, then raw little-endian data
(https://huggingface.co/docs/safetensors). Reading instead of memory-mapping keeps a build's
resident memory at what it holds, whatever the size of the checkpoint.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch

from exporter.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "I64": torch.int64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100 * 1024 * 1024  # bytes, the limit of the reference reader


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    size: int  # bytes

    def read(self) -> torch.Tensor:
        """The tensor, in the type that it is stored in."""
        with self.file.open("rb") as stream:
            return self._at(stream, 0, self.size).reshape(self.shape)

    def parts(self, count: int) -> Iterator[torch.Tensor]:
        """The tensor's values in order, flat, at most `count` at a time."""
        step = count * self.dtype.itemsize
        with self.file.open("rb") as stream:
            for start in range(0, self.size, step):
                yield self._at(stream, start, min(step, self.size - start))

    def read_rows(self, rows: Sequence[int]) -> torch.Tensor:
        """Some rows of a matrix, (len(rows), width), in the type that it is stored in."""
        step = self.shape[1] * self.dtype.itemsize
        with self.file.open("rb") as stream:
            return torch.stack([self._at(stream, row * step, step) for row in rows])

    def split(self, rows: int) -> "tuple[Entry, Entry]":
        """Where the first `rows` of it lie, and where the others."""
        size = self.size // self.shape[0] * rows
        first = replace(self, shape=(rows, *self.shape[1:]), size=size)
        rest = (self.shape[0] - rows, *self.shape[1:])
        return first, replace(self, shape=rest, start=self.start + size, size=self.size - size)

    def _at(self, stream: BinaryIO, start: int, size: int) -> torch.Tensor:
        data = bytearray(size)
        stream.seek(self.start + start)
        if stream.readinto(data) != size:  # type: ignore[attr-defined]  # a real file has it
            raise UserError(f"`{self.file}` ended while a tensor was read", "Copy it again")
        return (
            torch.frombuffer(data, dtype=self.dtype) if size else torch.empty(0, dtype=self.dtype)
        )


def read_header(file: Path) -> dict[str, Entry]:
    """All tensors of `file`. Raises UserError when the file is truncated or not safetensors."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _broken(file, f"{size} bytes, header of {length} bytes")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise _broken(file, f"header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _broken(file, "header is not a table")
    entries: dict[str, Entry] = {}
    for name, facts in header.items():
        if name != "__metadata__":
            entries[name] = _entry(file, name, facts, 8 + length, size)
    return entries


def _entry(file: Path, name: str, facts: object, base: int, size: int) -> Entry:
    try:
        if not isinstance(facts, dict):
            raise TypeError("not a table")
        dtype, shape = DTYPES[facts["dtype"]], tuple(int(n) for n in facts["shape"])
        start, stop = (int(n) for n in facts["data_offsets"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _broken(file, f"entry of `{name}` is not readable ({error!r})") from None
    honest = stop - start == math.prod(shape) * dtype.itemsize
    if not honest or min(start, *shape, 0) < 0:
        raise _broken(file, f"`{name}` of shape {list(shape)} has {stop - start} bytes")
    if base + stop > size:
        raise _broken(file, f"`{name}` ends at byte {base + stop} of {size}: truncated")
    return Entry(file, dtype, shape, base + start, stop - start)


def _broken(file: Path, seen: str) -> UserError:
    return UserError(f"`{file}` is not a whole safetensors file: {seen}", "Download it again")


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` to `file` in one atomic step; equal input gives equal bytes."""
    header: dict[str, object] = {}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def parts() -> Iterable[bytes]:
        yield len(text).to_bytes(8, "little") + text
        for name in sorted(tensors):
            yield raw_bytes(tensors[name])

    write_atomically(file, parts())


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The tensor's memory, row-major, little-endian."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_atomically(file: Path, parts: Iterable[bytes]) -> None:
    """Write `parts` one after the other; `file` appears whole or not at all, and nothing else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with draft.open("wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sha256(file: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
