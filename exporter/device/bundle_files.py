"""Files of a bundle: their digests, and how they are written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from .build_error import EngineError

CHUNK = 1 << 20  # bytes that are hashed at once


def write_whole(path: Path, content: Any) -> None:
    """A file of the bytes in a buffer, that appears whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or power that fails leaves a name without content
    os.replace(partial, path)


def digest(path: Path) -> str:
    """SHA-256 of a file. Raises EngineError where there is none."""
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                sha.update(chunk)
    except FileNotFoundError:
        raise EngineError(f"{path} is missing", "Copy or build the bundle again") from None
    return sha.hexdigest()
