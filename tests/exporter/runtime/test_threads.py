"""Threads of a session: as many as this process has cores for."""

import os
from pathlib import Path

import pytest

from exporter.runtime.threads import fewer_cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores, all of which may be used."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("300000 100000", 3), ("250000 100000", 2), ("50000 100000", 1),
     ("800000 100000", None), ("1600000 100000", None), ("nonsense", None)],
)  # fmt: skip
def test_a_quota_of_the_container_counts(quota: str, cores: int | None, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota + "\n")
    assert fewer_cores(file) == cores


@pytest.mark.usefixtures("eight")
def test_affinity_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    assert fewer_cores(tmp_path / "none") == 2
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert fewer_cores(tmp_path / "cpu.max") == 1


@pytest.mark.usefixtures("eight")
def test_the_whole_machine_is_left_to_the_runtime(tmp_path: Path) -> None:
    assert fewer_cores(tmp_path / "none") is None
