"""Digests and whole files."""

import hashlib
from pathlib import Path

import pytest

from exporter.device.build_error import EngineError
from exporter.device.bundle_files import CHUNK, digest, write_whole


def test_a_digest_is_that_of_all_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * (CHUNK // 256 + 1)  # more than it reads at once
    (tmp_path / "f").write_bytes(content)
    assert digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="f is missing"):
        digest(tmp_path / "f")


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "f", memoryview(b"old"))
    with pytest.raises(TypeError):
        write_whole(tmp_path / "f", "no bytes")
    assert (tmp_path / "f").read_bytes() == b"old"
