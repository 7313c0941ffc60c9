"""An ablation as Markdown, CSV and a plot."""

import csv
import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.ablation.ablate import FLOAT, Trial
from exporter.ablation.summary import summarize
from exporter.ablation.table import markdown, plot, table_csv
from tests.exporter.ablation.test_summary import mixed, trial

BASES = {"w4a4-gptq+cgq": "w4a4-gptq"}


def trials(tasks: tuple[str, ...] = ("sorting", "latin")) -> list[Trial]:
    """A float model, a base that loses much, and two seeds of a recipe that wins half back."""
    return [
        trial(FLOAT, mixed(40, 0), 0, tasks, bits=32.0),
        trial("w4a4-gptq", mixed(20, 20), 0, tasks, (0.875, 0.25)),
        trial("w4a4-gptq+cgq", mixed(30, 10), 0, tasks, (1.0, 0.125)),
        trial("w4a4-gptq+cgq", mixed(28, 12), 1, tasks, (0.75, 0.1875)),
    ]


def cells(line: str) -> list[str]:
    """The cells of a row of Markdown: a bar behind a backslash is text."""
    assert line.startswith("| ") and line.endswith(" |")
    parts = re.split(r"(?<!\\)(?:\\\\)*\|", line[1:-1])
    return [re.sub(r"\\(.)", r"\1", part.strip()) for part in parts]


def table_of(found: list[Trial], bases: dict[str, str]) -> list[list[str]]:
    text = markdown(summarize(found, bases))
    assert text.endswith("\n") and "\n\n" not in text
    return [cells(line) for line in text.splitlines()]


NAMES = st.text("ab |\\\n\t-", min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.booleans())
def test_every_row_has_the_cells_of_the_head(tasks: list[str], bases: bool) -> None:
    """Also where tasks have names that mean something in Markdown."""
    head, rule, *rows = table_of(trials(tuple(tasks)), BASES if bases else {})
    assert set(rule) == {"---"}
    assert {len(row) for row in (head, rule, *rows)} == {len(tasks) + 10}
    assert head[3 : 3 + len(tasks)] == [" ".join(task.split()) for task in tasks]
    assert [row[0] for row in rows] == ["`float`", "`w4a4-gptq`", "`w4a4-gptq+cgq`"]


def test_numbers_are_percent_points_and_nats() -> None:
    head, _, reference, base, ours = table_of(trials(), BASES)
    row = dict(zip(head, ours, strict=True))
    assert (row["bits"], row["seeds"]) == ("4.25", "2")
    assert (row["sorting"], row["latin"]) == ("72.5", "72.5")
    assert row["all (95 %)"].startswith("72.5 (") and row["worst seed"] == "70.0"
    assert row["− float"].startswith("−27.5 (−") and row["− base"].startswith("+22.5 (+")
    assert row["won back"].startswith("+45.0 % (")
    assert (row["agreement"], row["KL"]) == ("87.5", "0.1562")
    assert reference[1:3] == ["32.00", "1"] and reference[-4:] == [""] * 4
    assert base[-4:] == ["", "", "87.5", "0.2500"]
    low, high = (float(end) for end in re.findall(r"[\d.]+", row["all (95 %)"])[1:])
    assert low < 72.5 < high


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text() | st.text('a\r\n",;'), min_size=1, max_size=3, unique=True))
def test_csv_comes_back(tasks: list[str]) -> None:
    """A row a trial and task, and one for all tasks together where there are several."""
    found = trials(tuple(tasks))
    rows = list(csv.DictReader(io.StringIO(table_csv(found), newline="")))
    parts = [(task, {task}) for task in tasks]
    if len(tasks) > 1:
        parts.append(("all", set(tasks)))
    expected = [(one, task, inside) for one in found for task, inside in parts]
    for row, (one, task, inside) in zip(rows, expected, strict=True):
        assert (row["recipe"], row["task"]) == (one.recipe, " ".join(task.split()))
        outcomes = [o for o in one.outcomes if o.task in inside]
        assert int(row["prompts"]) == len(outcomes)
        assert int(row["right"]) == sum(bool(o.correct) for o in outcomes)
        assert (int(row["seed"]), float(row["bits"])) == (one.seed, one.bits)
        strayed = one.figures.trajectory
        forced = strayed and strayed.forced
        told = (forced.agreement, forced.kl) if forced else (None, None)
        shown = tuple(float(row[key]) if row[key] else None for key in ("agreement", "kl"))
        assert shown == told


def test_a_plot_shows_every_recipe_and_equal_figures_are_equal_files(tmp_path: Path) -> None:
    found = summarize(trials(), BASES)
    assert plot(found, tmp_path / "a.svg") and plot(found, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.tag.endswith("}svg")
    content = (tmp_path / "a.svg").read_text()
    for row in found:
        assert f"<!-- {row.recipe} -->" in content  # text is drawn as paths, and named beside
    assert plot(found[:2], tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_bytes() != (tmp_path / "a.svg").read_bytes()


def test_a_plot_leaves_the_settings_of_matplotlib_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = summarize(trials(), BASES)
    assert plot(found, tmp_path / "a.svg")
    monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "of a caller")
    before = dict(matplotlib.rcParams)
    assert plot(found, tmp_path / "b.svg")
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_without_matplotlib_there_is_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plot(summarize(trials(), BASES), tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
