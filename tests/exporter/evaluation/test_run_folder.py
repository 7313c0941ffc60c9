"""A run goes on where it was, is never mixed with another, and is read back as it was written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import UserError
from exporter.evaluation.run_folder import RUN, Plan, Run, open_run, read_run, versions

PLAN: Plan = {"generation": {"steps": 8, "given": ("steps",)}, "likelihood": None}


@dataclass(frozen=True)
class Note:
    index: int
    text: str
    values: list[float]


@settings(deadline=None)  # files: slow where others are at work
@given(st.lists(st.tuples(st.text(), st.lists(st.floats(allow_nan=False))), max_size=8), st.data())
def test_lines_survive_any_cut(
    tmp_path_factory: pytest.TempPathFactory,
    content: list[tuple[str, list[float]]],
    data: st.DataObject,
) -> None:
    notes = [Note(index, text, values) for index, (text, values) in enumerate(content)]
    run = Run(tmp_path_factory.mktemp("run"), PLAN)
    assert run.complete("notes", {}, [notes]) == notes
    assert run.read("notes", Note) == {note.index: note for note in notes}
    file = run.folder / "notes.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    kept = run.read("notes", Note)
    assert list(kept.values()) == notes[: len(kept)]
    assert run.complete("notes", kept, [notes]) == notes
    assert file.read_bytes() == whole


def test_a_stop_keeps_what_was_made(tmp_path: Path) -> None:
    def made() -> Iterator[Note]:
        yield Note(0, "a", [])
        raise KeyboardInterrupt

    run = Run(tmp_path, PLAN)
    with pytest.raises(KeyboardInterrupt):
        run.complete("notes", {}, [made()])
    assert run.read("notes", Note) == {0: Note(0, "a", [])}


def test_a_run_says_what_it_was_made_with(tmp_path: Path) -> None:
    with open_run(tmp_path / "new", PLAN, "model") as run:
        assert run.folder == tmp_path / "new"
    content = json.loads((run.folder / RUN).read_text())
    assert content["made_with"] == {"subject": "model", **versions()}
    assert {"python", "torch", "dqexport"} <= versions().keys()
    with open_run(run.folder, PLAN, "model") as again:
        assert again.plan == run.plan == read_run(run.folder).plan


@pytest.mark.parametrize(
    ("plan", "seen"),
    [
        ({"generation": {"steps": 4, "given": ["steps"]}, "likelihood": None}, "steps = 8.* has 4"),
        ({"generation": {"steps": 8, "given": []}, "likelihood": None}, r"given = \['steps'\]"),
        ({"generation": {"steps": 8, "given": ["steps"]}, "likelihood": {"draws": 2}}, "likelih"),
        ({"generation": None, "likelihood": None}, "generation"),
    ],
)
def test_another_plan_is_refused(tmp_path: Path, plan: Plan, seen: str) -> None:
    with open_run(tmp_path, PLAN, "model"):
        pass
    with pytest.raises(UserError, match=seen) as caught, open_run(tmp_path, plan, "model"):
        pass
    assert "--out" in caught.value.hint


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files"), open_run(tmp_path, PLAN, "model"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match=f"no {RUN}"):
        read_run(tmp_path)


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, PLAN, "model"),
        pytest.raises(UserError, match="Another evaluation"),
        open_run(tmp_path, PLAN, "model"),
    ):
        pass
    with open_run(tmp_path, PLAN, "model"):
        pass


def test_without_a_folder_nothing_stays() -> None:
    with open_run(None, PLAN, "model") as run:
        run.complete("notes", {}, [[Note(0, "a", [])]])
        assert (run.folder / "notes.jsonl").is_file()
    assert not run.folder.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"plan": {}}', '{"format": 9, "plan": {}}'])
def test_damaged_runs_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RUN).write_text(content)
    with pytest.raises(UserError, match=RUN):
        read_run(tmp_path)


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    for content in ("{\n", "[]\n", '{"index": 1}\n'):
        (tmp_path / "notes.jsonl").write_text(content)
        with pytest.raises(UserError, match=r"notes\.jsonl` is damaged"):
            Run(tmp_path, PLAN).read("notes", Note)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"ind')
    assert Run(tmp_path, PLAN).read("notes", Note) == {}
    assert (tmp_path / "notes.jsonl").read_text() == '{"ind'
