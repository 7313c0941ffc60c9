"""`dqexport ablate` end to end: three files, work that is done once, errors with a hint."""

import csv
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exporter.tasks import reference_folder
from tests.commands import DQEXPORT, ONE_THREAD, Outcome, assert_refused, content, dqexport

TASKS = reference_folder() / "tasks"
SORTING, BRACKETS = TASKS / "sorting.jsonl", TASKS / "brackets.jsonl"
FILES = {"table.md", "table.csv", "plot.svg"}
START: tuple[str | Path, ...] = ("ablate", "reference", SORTING, BRACKETS, "--limit", "2")
QUICK = ("--trajectory", "2", "--calib-prompts", "4", "--samples", "6")
TWO = ("--recipe", "w4a4-rtn+token", "--recipe", "w4a16-rtn")


def ablate(*argv: str | Path) -> Outcome:
    outcome = dqexport(*START, *QUICK, *argv)
    assert outcome.code == 0, outcome.err
    return outcome


def runs(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(out).items() if name.startswith("runs/")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Two recipes, one seed."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    return out, ablate(*TWO, "--seeds", "1", "-o", out)


def test_it_writes_a_table_twice_and_a_plot(finished: tuple[Path, Outcome]) -> None:
    out, outcome = finished
    assert {file.name for file in out.iterdir()} == {*FILES, "runs"}
    assert outcome.out.rstrip("\n") == (out / "table.md").read_text().rstrip("\n")
    head, _, *rows = outcome.out.splitlines()[:5]
    assert head.startswith("| recipe | bits | seeds | sorting | brackets | all (95 %) |")
    named = [row.split(" | ")[0] for row in rows]
    assert named == ["| `float`", "| `w4a4-rtn+token`", "| `w4a16-rtn`"]
    with (out / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["recipe"], line["task"]) for line in lines] == [
        (name, task)
        for name in ("float", "w4a4-rtn+token", "w4a16-rtn")
        for task in ("sorting", "brackets", "all")
    ]
    assert b"<svg" in (out / "plot.svg").read_bytes()
    for stage in ("roll out", "quantize", "decode", "trajectories"):
        assert stage in outcome.err


def test_run_again_it_takes_nothing_anew(finished: tuple[Path, Outcome]) -> None:
    out, first = finished
    before = content(out)
    again = ablate(*TWO, "--seeds", "1", "-o", out)
    assert again.out == first.out
    assert content(out) == before
    assert again.err.splitlines() == ["check weights: 1 step"]  # no model was asked or made


def test_json_holds_the_same_numbers_and_a_base_is_that_of_all(
    finished: tuple[Path, Outcome],
) -> None:
    """One more recipe is evaluated, for it is compared with, and comes first."""
    out, first = finished
    taken = runs(out)
    named = ("--recipe", "w4a16-rtn", "--base", "w4a4-rtn+token", "--seeds", "1", "--json")
    printed: list[dict[str, Any]] = json.loads(ablate(*named, "-o", out).out)
    assert [row["recipe"] for row in printed] == ["float", "w4a4-rtn+token", "w4a16-rtn"]
    assert [row["minus_base"] is None for row in printed] == [True, True, False]
    mean = printed[2]["accuracy"] - printed[1]["accuracy"]
    assert printed[2]["minus_base"]["mean"] == pytest.approx(mean)
    assert runs(out) == taken
    for row in printed:
        assert f"| `{row['recipe']}` | {row['bits']:.2f} | 1 |" in first.out


def start(*argv: str | Path) -> "subprocess.Popen[str]":
    command = [DQEXPORT, *map(str, (*START, *QUICK, *argv))]
    return subprocess.Popen(
        command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_processes_share_a_folder_by_their_seeds(tmp_path: Path) -> None:
    """Both need the float model, and neither fails because the other is at it."""
    apart, alone = tmp_path / "apart", tmp_path / "alone"
    recipe = ("--recipe", "w4a4-rtn+token", "--limit", "1", "--trajectory", "0")
    both = [start(*recipe, "--seeds", "1", "--first-seed", seed, "-o", apart) for seed in "01"]
    for process in both:
        _, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints
    assert {file.name for file in (apart / "runs").iterdir() if file.is_dir()} == {
        "float", "w4a4-rtn+token-seed0", "w4a4-rtn+token-seed1",
    }  # fmt: skip
    together = ablate(*recipe, "--seeds", "2", "-o", apart)
    assert together.err.splitlines() == ["check weights: 1 step"]
    assert ablate(*recipe, "--seeds", "2", "-o", alone).out == together.out
    assert content(alone) == content(apart)


def wrong_commands(tmp_path: Path) -> list[tuple[Sequence[str | Path], str, str]]:
    """Arguments behind `ablate`, what the error says, what the hint says."""
    bad, code = tmp_path / "bad.jsonl", tmp_path / "code.jsonl"
    bad.write_text('{"prompt": "S1=", "answr": "1"}\n')
    code.write_text('{"prompt": "S1=", "answer": "pass", "match": "code"}\n')
    good = ("reference", SORTING, "--limit", "1")
    return [
        ((*good, "--recipe", "w5"), "w5", "w4a16"),
        ((*good, "--recipe", "w4a16-rtn", "--recipe", "w4a16-magic"), "w4a16-magic", "quarot"),
        ((*good, "--recipe", "w4a16-rtn", "--base", "w4a16-magic"), "w4a16-magic", "quarot"),
        ((*good, "--preset", "everything"), "`everything`", "components"),
        ((*good, "--recipe", "w4a16", "--calib", tmp_path / "no.txt"), "no.txt", "path"),
        ((*good, "--recipe", "w4a16-rtn", "--device", "tpu"), "`tpu`", "cuda"),
        (("reference", tmp_path / "no.jsonl"), "no.jsonl", "path"),
        (("reference", bad), "bad.jsonl:1: unknown key 'answr'", '{"prompt"'),
        (("reference", code), "`code` are programs", "eval --allow-code"),
        ((tmp_path / "absent", SORTING), "is no checkpoint", "reference"),
        ((tmp_path,), "No task files", ".jsonl"),
    ]


def test_wrong_inputs_get_a_hint_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = wrong_commands(tmp_path)
    before = content(tmp_path)
    for argv, says, hint in wrong:
        assert_refused(dqexport("ablate", *argv, "--out", tmp_path / "out"), says, hint)
        assert content(tmp_path) == before
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [["--seeds", "0"], ["--first-seed", "-1"], ["--limit", "0"],
                                  ["--trajectory", "-1"], ["--calib-prompts", "0"]])  # fmt: skip
def test_numbers_out_of_range_are_wrong_usage(argv: list[str], tmp_path: Path) -> None:
    outcome = dqexport("ablate", *argv, "--out", tmp_path / "out")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"'{argv[0]}'" in outcome.err
    assert not list(tmp_path.iterdir())
