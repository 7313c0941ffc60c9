"""Records of what was built, and for what it is good."""

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.device.build_error import EngineError
from exporter.device.build_records import RECORD, fitting, made_of, read_records, write_record
from exporter.device.bundle_files import digest
from tests.engine_bundle import write_bundle


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    engines = write_bundle(tmp_path) | {"plugins": "p"}
    return made_of(tmp_path, "full", engines, "w", "10.3.0", [87])


@pytest.fixture
def record(tmp_path: Path, made: dict[str, Any]) -> dict[str, Any]:
    """That of an engine which is there."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "full.plan").write_bytes(b"engine")
    whole = digest(tmp_path / "engines" / "full.plan")
    return made | {"path": "engines/full.plan", "sha256": whole}


def test_an_engine_fits_what_it_was_made_of(
    tmp_path: Path, made: dict[str, Any], record: dict[str, Any]
) -> None:
    assert fitting(tmp_path, made, [record | {"graph": "cached"}, record]) == record
    for key in made:
        assert fitting(tmp_path, made | {key: "other"}, [record]) is None, key


def test_an_engine_of_before_there_were_plugins_has_none(
    tmp_path: Path, made: dict[str, Any], record: dict[str, Any]
) -> None:
    del record["plugins"]
    assert fitting(tmp_path, made, [record]) is None
    assert fitting(tmp_path, made | {"plugins": None}, [record]) == record


@pytest.mark.parametrize("content", [b"enginf", b"", None])
def test_an_engine_that_is_not_whole_does_not_fit(
    tmp_path: Path, made: dict[str, Any], record: dict[str, Any], content: bytes | None
) -> None:
    file = tmp_path / "engines" / "full.plan"
    file.unlink() if content is None else file.write_bytes(content)
    assert fitting(tmp_path, made, [record]) is None


def test_a_record_takes_the_place_of_that_of_its_graph(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    assert read_records(tmp_path) == []
    for one in (record, record | {"graph": "cached"}, record | {"version": "10.4.0"}):
        write_record(tmp_path, one)
    found = {one["graph"]: one["version"] for one in read_records(tmp_path)}
    assert found == {"full": "10.4.0", "cached": "10.3.0"}
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == [
        "engines.json", "full.plan",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["{", "[1]", json.dumps([{"graph": "full"}])])
def test_damaged_records_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).parent.mkdir()
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(EngineError, match=r"engines\.json is damaged"):
        read_records(tmp_path)
