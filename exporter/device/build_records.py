"""What an engine was made of and for: the records in engines/engines.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .build_error import EngineError
from .bundle_files import digest, write_whole

RECORD = "engines/engines.json"

Record = dict[str, Any]  # `BuiltEngine` of the manifest


def made_of(
    folder: Path, graph: str, engines: Mapping[str, Any], weights: str, version: str,
    sm: Sequence[int],
) -> Record:  # fmt: skip
    """The part of a record that says for what its engine is good.

    `engines`: that of the manifest; `weights`: digest of graphs/weights.bin; `version`: TensorRT's.
    """
    return {
        "graph": graph,
        "graph_sha256": digest(folder / "graphs" / f"{graph}.onnx"),
        "weights_sha256": weights,
        "runtime": engines["runtime"],
        "version": version,
        "sm": list(sm),
        "plugins": engines.get("plugins"),
    }


def fitting(folder: Path, made: Mapping[str, Any], known: Iterable[Record]) -> Record | None:
    """The record among the `known` of an engine that is there, whole, and made of the same."""
    for record in known:
        file = folder / record["path"]
        same = {key: record.get(key) for key in made} == made
        if same and file.is_file() and digest(file) == record["sha256"]:
            return record
    return None


def read_records(folder: Path) -> list[Record]:
    """What was built in the bundle `folder`. Raises EngineError where that is damaged."""
    path = folder / RECORD
    if not path.is_file():
        return []
    try:
        records = [dict(one) for one in json.loads(path.read_text(encoding="utf-8"))]
        return [one for one in records if one["graph"] and one["path"] and one["sha256"]]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{path} is damaged ({error!r})"
        raise EngineError(reason, "Delete it; engines are built again") from error


def write_record(folder: Path, record: Record) -> None:
    """Add a record, in the place of the one of the same graph."""
    merged = {one["graph"]: one for one in [*read_records(folder), record]}
    text = json.dumps(list(merged.values()), indent=2) + "\n"
    write_whole(folder / RECORD, text.encode())
