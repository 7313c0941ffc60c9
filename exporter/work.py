"""The work folder of a build: finished stages, keyed by what they depend on, and a draft bundle.

A stage that is done is found again by its key, so a build that was killed goes on where it was, and
one folder given with --work serves several targets.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from exporter.errors import UserError

FORMAT = 2  # of what stages keep


@dataclass(frozen=True)
class Work:
    """An opened work folder; one build at a time holds it."""

    folder: Path

    def stage(self, name: str, *depends_on: object) -> Path:
        """The folder of a stage, made if new.

        Equal `depends_on` (by repr) give the same folder, under one version of the program.
        """
        made_of = (version("dqexport"), FORMAT, depends_on)
        key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{key}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self) -> None:
        """Delete everything: the bundle is done and nothing else will use the stages."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def draft(self) -> Path:
        """An empty folder to put a bundle together in."""
        path = self.folder / "draft"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


@contextmanager
def open_work(folder: Path, rank: int = 0) -> Iterator[Work]:
    """Make and lock the work folder. The draft goes away at the end, finished stages stay.

    Of several processes of one build only the first, `rank` 0, locks and cleans up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if rank != 0:
        yield Work(folder)
        return
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another build is at work in `{folder}`",
                "Wait for it, or give this one a folder of its own with --work",
            ) from None
        try:
            yield Work(folder)
        finally:
            shutil.rmtree(folder / "draft", ignore_errors=True)


def to_json(content: object) -> bytes:
    """Readable JSON with a stable order, for files that are compared or hashed."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
