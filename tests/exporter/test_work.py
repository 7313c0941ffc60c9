"""The work folder: stages are found again by what they depend on, and one build at a time works."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UserError
from exporter.runtime.settings import Settings
from exporter.work import open_work, to_json

OPENER = """
import sys
from pathlib import Path
from exporter.errors import UserError
from exporter.work import open_work
try:
    with open_work(Path(sys.argv[1])):
        print("opened")
except UserError as error:
    print(error, "|", error.hint)
"""


def open_elsewhere(folder: Path) -> str:
    """What another process says that opens the work folder."""
    command = [sys.executable, "-c", OPENER, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_equal_dependencies_share_a_stage_and_others_do_not(tmp_path: Path) -> None:
    with open_work(tmp_path) as work:
        first = work.stage("calibrate", "digest", Settings(seed=1), ((1, 2), (3,)))
        assert work.stage("calibrate", "digest", Settings(seed=1), ((1, 2), (3,))) == first
        others = [
            work.stage("quantize", "digest", Settings(seed=1), ((1, 2), (3,))),
            work.stage("calibrate", "Digest", Settings(seed=1), ((1, 2), (3,))),
            work.stage("calibrate", "digest", Settings(seed=2), ((1, 2), (3,))),
            work.stage("calibrate", "digest", Settings(seed=1), ((1, 2), (4,))),
            work.stage("calibrate", "digest", Settings(seed=1), ((1, 2, 3),)),
            work.stage("calibrate", "digest", Settings(seed=1)),
        ]
        assert len({first, *others}) == 7
        assert all(stage.is_dir() for stage in others)


def test_a_second_build_is_refused_while_the_first_works(tmp_path: Path) -> None:
    with open_work(tmp_path):
        said = open_elsewhere(tmp_path)
        assert "Another build is at work" in said and str(tmp_path) in said and "--work" in said
        with pytest.raises(UserError, match="Another build"), open_work(tmp_path):
            pass
    assert open_elsewhere(tmp_path) == "opened\n"


def test_other_processes_of_one_build_do_not_lock(tmp_path: Path) -> None:
    with open_work(tmp_path, rank=1) as late, open_work(tmp_path) as work:
        assert late.stage("calibrate", 1) == work.stage("calibrate", 1)
        kept = work.draft()
    with open_work(tmp_path) as work:
        draft = work.draft()
        with open_work(tmp_path, rank=1):
            pass
        assert draft == kept and draft.is_dir()  # only the first process cleans up


def test_an_error_removes_the_draft_and_keeps_the_stages(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_work(tmp_path / "deep" / "work") as work:
        stage, draft = work.stage("calibrate", 1), work.draft()
        (stage / "states").write_text("kept")
        (draft / "manifest.json").write_text("half")
        raise RuntimeError
    assert not draft.exists()
    with open_work(tmp_path / "deep" / "work") as work:
        assert (work.stage("calibrate", 1) / "states").read_text() == "kept"


def test_a_draft_starts_empty(tmp_path: Path) -> None:
    (tmp_path / "draft" / "graphs").mkdir(parents=True)  # of a build that was killed
    with open_work(tmp_path) as work:
        assert list(work.draft().iterdir()) == []


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    with open_work(tmp_path / "work") as work:
        work.stage("calibrate", 1)
        work.draft()
        work.remove()
    assert list(tmp_path.iterdir()) == []


@given(table=st.dictionaries(st.text(max_size=3), st.integers(), max_size=4))
def test_json_does_not_depend_on_the_order_of_a_table(table: dict[str, int]) -> None:
    assert to_json(table) == to_json(dict(reversed(table.items())))
