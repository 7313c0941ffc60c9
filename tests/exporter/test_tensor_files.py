"""Our safetensors reader and writer against the reference library, and against files that lie."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from exporter.errors import UserError
from exporter.tensor_files import (
    DTYPES,
    MAX_HEADER,
    raw_bytes,
    read_header,
    sha256,
    write_atomically,
    write_tensors,
)

reuse = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def every_dtype() -> dict[str, torch.Tensor]:
    """One tensor of each type, a scalar and an empty one among them."""
    bits = torch.arange(24).reshape(2, 3, 4)
    found = {
        name: (bits % 2 if name == "BOOL" else bits).to(dtype) for name, dtype in DTYPES.items()
    }
    return {**found, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 7)}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and raw_bytes(a) == raw_bytes(b)


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = every_dtype()
    write_tensors(tmp_path / "a", tensors)
    found = load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensors[name]) for name in tensors)


def test_we_read_what_the_reference_library_writes(tmp_path: Path) -> None:
    tensors = every_dtype()
    save_file(tensors, tmp_path / "a", metadata={"format": "pt"})
    entries = read_header(tmp_path / "a")
    assert entries.keys() == tensors.keys()
    for name, entry in entries.items():
        assert same(entry.read(), tensors[name])
        assert (entry.shape, entry.size) == (
            tuple(tensors[name].shape),
            len(raw_bytes(tensors[name])),
        )


def test_views_are_written_by_value(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    write_tensors(tmp_path / "a", {"turned": whole.T, "part": whole[1:3, ::2]})
    found = load_file(tmp_path / "a")
    assert same(found["turned"], whole.T.contiguous())
    assert same(found["part"], whole[1:3, ::2].contiguous())


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = every_dtype()
    write_tensors(tmp_path / "a", tensors)
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


@reuse
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 7),
    count=st.integers(1, 70),
    data=st.data(),
)
def test_parts_and_rows_are_the_tensor(
    tmp_path: Path, rows: int, width: int, count: int, data: st.DataObject
) -> None:
    tensor = torch.randn(rows, width).to(torch.bfloat16)
    write_tensors(tmp_path / "a", {"other": torch.ones(3), "x": tensor})
    entry = read_header(tmp_path / "a")["x"]
    parts = list(entry.parts(count))
    assert same(torch.cat(parts), tensor.flatten())
    assert all(len(part) == count for part in parts[:-1])
    assert 0 < len(parts[-1]) <= count
    wanted = data.draw(st.lists(st.integers(0, rows - 1), min_size=1))
    assert same(entry.read_rows(wanted), tensor[wanted])


def lie(file: Path, header: object, data: bytes = bytes(16), length: int | None = None) -> Path:
    """A file with this header, or these raw bytes as its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def one(**changes: Any) -> dict[str, object]:
    return {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}


def test_the_lies_are_told_about_a_file_that_is_read(tmp_path: Path) -> None:
    assert read_header(lie(tmp_path / "a", one()))["x"].read().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("header", "seen"),
    [
        (one(data_offsets=[0, 12]), r"`x` of shape \[4\] has 12 bytes"),
        (one(shape=[5]), r"`x` of shape \[5\] has 16 bytes"),
        (one(dtype="F16"), r"`x` of shape \[4\] has 16 bytes"),
        (one(data_offsets=[16, 32]), r"ends at byte \d+ of \d+: truncated"),
        (one(shape=[1 << 40], data_offsets=[0, 1 << 42]), "truncated"),
        (one(data_offsets=[-16, 0]), "has 16 bytes"),
        (one(data_offsets=[16, 0]), "has -16 bytes"),
        (one(shape=[-2, -2]), r"\[-2, -2\]"),
        (one(data_offsets=[0]), "not readable"),
        (one(data_offsets=None), "not readable"),
        (one(data_offsets=[0, math.inf]), "not readable"),
        (one(shape="four"), "not readable"),
        (one(dtype="F4"), "not readable"),
        (one(dtype=["F32"]), "not readable"),
        ({"x": {}}, "not readable"),
        ({"x": 7}, "not readable"),
        ([one()], "header is not a table"),
        (b"\x00\x01 not json", "header is not JSON"),
        (b'{"x": ', "header is not JSON"),
        (b"\xff\xfe\xfd", "header is not JSON"),
        (b"[" * 100_000, "header is not JSON"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, seen: str) -> None:
    file = lie(tmp_path / "a.safetensors", header)
    with pytest.raises(UserError, match=rf"a\.safetensors. is not a whole safetensors.*{seen}"):
        read_header(file)


@pytest.mark.parametrize("length", [200, MAX_HEADER + 1, 1 << 60])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(UserError, match=f"header of {length} bytes"):
        read_header(lie(tmp_path / "a", one(), length=length))


@reuse
@given(st.binary(max_size=64))
def test_noise_is_refused(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / "a").write_bytes(noise)
    try:
        entries = read_header(tmp_path / "a")
    except UserError:
        return
    assert entries == {}  # the only file so small that is right


@reuse
@given(st.data())
def test_a_cut_file_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    write_tensors(tmp_path / "whole", {"a": torch.ones(3, 3), "b": torch.ones(2)})
    whole = (tmp_path / "whole").read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    (tmp_path / "cut").write_bytes(whole[:size])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        read_header(tmp_path / "cut")


def test_a_file_that_shrinks_after_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(100)})
    entry = read_header(tmp_path / "a")["x"]
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-4])
    with pytest.raises(UserError, match="ended while a tensor was read"):
        entry.read()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_atomically(tmp_path / "deep" / "a", failing())
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    write_atomically(tmp_path / "a", [b"old", b" content"])
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", failing())
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a", b"old content")]


def test_the_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    def watching() -> Iterator[bytes]:
        yield b"first"
        assert not (tmp_path / "a").exists()
        yield b" second"

    write_atomically(tmp_path / "a", watching())
    assert (tmp_path / "a").read_bytes() == b"first second"
