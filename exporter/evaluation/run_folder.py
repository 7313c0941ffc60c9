"""A run: results that are appended as they come, and what they were made with.

A folder with run.json and one file of JSON lines for each part. A run that was killed goes on where
it was, if nothing that decides its numbers has changed.
"""

import fcntl
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol, TypeVar

from exporter.errors import UserError
from exporter.tensor_files import write_atomically
from exporter.work import to_json

RUN = "run.json"
FORMAT = 1
PACKAGES = ("dqexport", "numpy", "torch", "onnxruntime", "tokenizers")

Plan = Mapping[str, Mapping[str, object] | None]  # part -> all that decides its numbers


class Line(Protocol):
    """A dataclass of plain values: the result for one example."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def index(self) -> int: ...


L = TypeVar("L", bound=Line)


@dataclass(frozen=True)
class Run:
    """An opened run."""

    folder: Path
    plan: Plan

    def read(self, part: str, kind: type[L]) -> dict[int, L]:
        """The finished lines of a part, by index, without one that was left half written."""
        file = self.folder / f"{part}.jsonl"
        if not file.is_file():
            return {}
        *whole, _ = file.read_bytes().split(b"\n")
        try:
            lines = [kind(**json.loads(line)) for line in whole]
        except (ValueError, TypeError) as error:
            raise UserError(f"`{file}` is damaged: {error}", "Evaluate again") from None
        return {line.index: line for line in lines}

    def complete(self, part: str, done: dict[int, L], made: Iterable[Iterable[L]]) -> list[L]:
        """All lines of a part in order of their index: those `done`, and what is `made` by batches.

        A batch is made as a whole also where some of its lines are there, so that the others come
        out as they would have; a line that is there is not written again.
        """
        done = dict(done)
        with (self.folder / f"{part}.jsonl").open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # a line that was left half written
            for batch in made:
                for line in batch:
                    if line.index not in done:
                        done[line.index] = line
                        file.write(json.dumps(asdict(line)).encode() + b"\n")
                        file.flush()
        return [done[index] for index in sorted(done)]


@contextmanager
def open_run(folder: Path | None, plan: Plan, name: str) -> Iterator[Run]:
    """Start a run in `folder`, or go on with the one there. None: a folder that goes away after.

    `name` is that of the subject, for readers.

    Raises UserError where the run there was made with another plan, or someone is at work in it.
    """
    if folder is None:
        with TemporaryDirectory() as temporary, open_run(Path(temporary), plan, name) as run:
            yield run
        return
    folder.mkdir(parents=True, exist_ok=True)
    plan = json.loads(to_json(plan))  # as it is read back
    file = folder / RUN
    if file.is_file():
        _check(folder, read_run(folder).plan, plan)
    elif any(folder.iterdir()):
        raise UserError(
            f"`{folder}` holds files, but no {RUN}", "Give --out an empty or new folder"
        )
    else:
        content = {"format": FORMAT, "plan": plan, "made_with": {"subject": name, **versions()}}
        write_atomically(file, [to_json(content)])
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another evaluation is at work in `{folder}`", "Wait for it, or give another --out"
            ) from None
        yield Run(folder, plan)


def read_run(folder: Path) -> Run:
    """A run to look at. Raises UserError where there is none."""
    file = folder / RUN
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != FORMAT:
            raise UserError(f"`{file}` has format {content['format']!r}", "Evaluate again")
        return Run(folder, content["plan"])
    except FileNotFoundError:
        raise UserError(
            f"`{folder}` has no {RUN}", "Give a folder that `dqexport eval --out` wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"`{file}` is damaged: {error!r}", "Evaluate again") from None


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime-gpu goes by another name
            found[name] = "none"
    return found


def _check(folder: Path, before: Plan, now: Plan) -> None:
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            raise UserError(
                f"The run in `{folder}` has {name} = {old.get(name)!r}, this command has"
                f" {new.get(name)!r}",
                "Repeat the command of the run, or give --out another folder",
            )


def _flat(content: object, name: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(content, dict):
        yield name, content
        return
    for key, value in content.items():
        yield from _flat(value, f"{name}.{key}" if name else key)
