"""`dqexport eval` end to end: equal answers everywhere, runs that go on, errors with a hint."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exporter.tasks import reference_folder
from tests.commands import DQEXPORT, ONE_THREAD, assert_refused, build, content, dqexport

SORTING = reference_folder() / "tasks" / "sorting.jsonl"
BRACKETS = reference_folder() / "tasks" / "brackets.jsonl"


def evaluate(*argv: str | Path) -> Any:
    outcome = dqexport("eval", *argv, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "results.jsonl").open()]


@pytest.fixture(scope="module")
def float_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as an fp32 bundle."""
    out = tmp_path_factory.mktemp("reference") / "bundle"
    build("--recipe", "fp32", "--gate-prompts", "2", "-o", out)
    return out


def test_checkpoint_and_bundle_give_the_same_answers(float_reference: Path, tmp_path: Path) -> None:
    files: list[str | Path] = ["--limit", "40", SORTING, BRACKETS]
    ours = evaluate("reference", *files, "--out", tmp_path / "a")
    theirs = evaluate(float_reference, *files, "--out", tmp_path / "b", "--against", tmp_path / "a")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert [row["task"] for row in ours["generation"]] == ["sorting", "brackets", "all"]
    for row, other in zip(ours["generation"], theirs["generation"], strict=True):
        assert row["versus"] is None and row["accuracy"] > 0.9
        assert other["versus"]["difference"] == 0 and other["versus"]["p"] == 1
        assert {**other, "versus": None} == row
    assert (ours["recipe"], theirs["recipe"], theirs["subject"]) == (None, "fp32", "bundle")


def test_answers_are_those_of_run(float_reference: Path, tmp_path: Path) -> None:
    evaluate(float_reference, SORTING, "--limit", "2", "--steps", "4", "--out", tmp_path / "run")
    for line, example in zip(lines(tmp_path / "run"), SORTING.open(), strict=False):
        prompt = json.loads(example)["prompt"]
        done = dqexport("run", float_reference, "--prompt", prompt, "--steps", "4", "--json")
        printed = json.loads(done.out)
        assert (line["text"], line["forwards"]) == (printed["text"], printed["forwards"])


def test_caches_can_be_evaluated(tmp_path: Path) -> None:
    """What is kept in 4 bits gives other answers than the model without a cache."""
    cached = ["--cache", "dual", "--block-length", "2", "--recipe", "w8a8-rtn", "--kv-bits", "4"]
    for name, how in (("plain", []), ("cached", [*cached, "--calib-prompts", "4"])):
        evaluate("reference", SORTING, "--limit", "30", *how, "--out", tmp_path / name)
    assert lines(tmp_path / "plain") != lines(tmp_path / "cached")
    outcome = dqexport("eval", "reference", SORTING, "--cache", "some")
    assert_refused(outcome, "some", "none")


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    command: list[str | Path] = ["eval", SORTING, "--limit", "36", "--batch", "3", "--out"]
    evaluate(*command[1:], tmp_path / "whole")
    results = tmp_path / "killed" / "results.jsonl"
    process = subprocess.Popen(
        [DQEXPORT, *map(str, command), str(tmp_path / "killed")],
        env=ONE_THREAD,
        stderr=subprocess.DEVNULL,
    )
    wait_for_lines(results, 7, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = results.read_bytes()
    assert 7 <= before.count(b"\n") < 36
    with results.open("ab") as file:
        file.write(b'{"index": 35, "te')  # a line that was being written
    evaluate(*command[1:], tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert results.read_bytes().startswith(before)


def wait_for_lines(file: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    while not file.is_file() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)


def test_all_parts_of_a_simulated_model(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"prompt": "__A123+456=", "choices": ["0580", "0579"], "answer": "0579"}')
    argv: list[str | Path] = [
        "reference",
        SORTING,
        "--limit",
        "4",
        "--trajectory",
        "3",
        "--likelihood",
        questions,
    ]
    quantized = ["--recipe", "w4a16-rtn", "--mc-num", "8", "--mc-batch", "4"]
    found = evaluate(*argv, *quantized, "--out", tmp_path / "run")
    assert found["recipe"] == "w4a16-rtn"
    assert found["generation"][0]["prompts"] == 4
    (likelihood,) = found["likelihood"]
    assert likelihood["accuracy"] == 1 and likelihood["per_answer"]["mean"] < 0
    trajectory = found["trajectory"]
    assert trajectory["prompts"] == 3 and trajectory["forced"]["positions"] == 24
    assert 0 < trajectory["forced"]["kl"] < 0.1  # 4 bits are felt, and do no harm
    assert sorted(content(tmp_path / "run")) == [
        "likelihood.jsonl", "results.jsonl", "run.json", "trajectory.jsonl",
    ]  # fmt: skip
    again = dqexport("eval", *argv, *quantized, "--out", tmp_path / "run")
    table = again.out.splitlines()
    assert again.code == 0 and "decode" not in again.err and "likelihood" not in again.err
    assert table[0].startswith("task") and table[1].startswith("sorting") and len(table) == 13
    other = dqexport("eval", *argv, *quantized, "--out", tmp_path / "other", "--against",
                     tmp_path / "run")  # fmt: skip
    assert "McNemar p" in other.out.splitlines()[0] and "minus other" in other.out.splitlines()[3]


def test_code_runs_when_it_is_allowed(tmp_path: Path) -> None:
    tasks = tmp_path / "code.jsonl"
    tasks.write_text('{"prompt": "_S58982066=", "answer": "pass", "match": "code"}\n')
    assert_refused(dqexport("eval", tasks), "programs", "--allow-code")
    found = evaluate(tasks, "--allow-code")  # the model answers 02566889: an integer? no: octal
    assert found["generation"][0]["accuracy"] == 0


def wrong_runs(tmp_path: Path, bundle: Path) -> list[tuple[Sequence[str | Path], str, str]]:
    """Arguments, what the error says, what the hint says."""
    run, other, bad = tmp_path / "run", tmp_path / "other", tmp_path / "bad.jsonl"
    evaluate(SORTING, "--limit", "2", "--out", run)
    evaluate(SORTING, "--limit", "3", "--out", other)
    bad.write_text('{"prompt": "S1=", "answr": "1"}\n')
    three = ("reference", SORTING, "--limit", "3")
    return [
        ((tmp_path / "absent", SORTING), "is no checkpoint", "reference"),
        ((bundle,), "No task files", ".jsonl"),
        ((bundle, SORTING, "--recipe", "w4a16-rtn"), "is no checkpoint", "without --recipe"),
        ((bundle, SORTING, "--trajectory", "2"), "which `bundle` is not", "--float"),
        (("reference", bad), "bad.jsonl:1: unknown key 'answr'", '{"prompt"'),
        (("reference", SORTING, "--limit", "3", "--out", run), "generation.examples", "--out"),
        ((*three, "--steps", "2", "--out", other), "settings.steps = None", "--out"),
        ((*three, "--recipe", "w8a16-rtn", "--out", other), "subject.digest", "--out"),
        ((*three, "--against", run), "other examples", "--limit"),
        ((*three, "--against", tmp_path), "no run.json", "--out"),
        ((*three, "--sampler", "greedy"), "unknown sampler 'greedy'", "low-confidence"),
        ((*three, "--gen-length", "600"), "more than the 512", "--gen-length"),
        ((*three, "--recipe", "w5"), "w5", "w4a16"),
        ((*three, "--mc-num", "20"), "20 draws", "--mc-num 16"),
        ((*three, "--device", "tpu"), "`tpu`", "cuda"),
    ]


def test_wrong_inputs_get_a_hint(float_reference: Path, tmp_path: Path) -> None:
    for argv, says, hint in wrong_runs(tmp_path, float_reference):
        assert_refused(dqexport("eval", *argv), says, hint)
