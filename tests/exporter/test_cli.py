"""The command line: data on stdout, the rest on stderr, errors in two lines, codes 0, 1 and 2."""

import json
import subprocess
from pathlib import Path

import pytest

import targets
from exporter import recipe_names
from exporter.manifest import Manifest
from exporter.verify import read_manifest
from tests.commands import (
    DQEXPORT,
    ONE_THREAD,
    QUICK_FP32,
    Outcome,
    assert_refused,
    build,
    dqexport,
)


def own_process(*argv: str | Path) -> Outcome:
    """The installed program, with its streams as a shell has them."""
    done = subprocess.run(
        [DQEXPORT, *map(str, argv)], capture_output=True, text=True, check=False, env=ONE_THREAD
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_installed_program_keeps_data_apart_from_progress(tmp_path: Path) -> None:
    outcome = own_process("build", *QUICK_FP32, "-o", tmp_path / "b")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{tmp_path / 'b' / 'manifest.json'}\n"
    for stage in ("check weights", "float decode", "lower", "gate"):
        assert stage in outcome.err


def test_verbose_shows_the_traceback() -> None:
    assert_refused(dqexport("inspect", "/nowhere"), "`/nowhere` has no manifest.json", "bundle")
    outcome = own_process("--verbose", "inspect", "/nowhere")
    assert outcome.code == 1 and not outcome.out
    assert "Traceback" in outcome.err and "UserError" in outcome.err


@pytest.mark.parametrize(
    "argv",
    [
        ["frobnicate"],
        ["build", "--frobnicate"],
        ["build", "--samples", "0"],
        ["build", "--samples", "many"],
        ["build", "--accuracy-level", "5"],
        ["build", "--outputs", "pictures"],
        ["build", "--gen-length", "0"],
        ["run"],
        ["verify"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_tells_the_right_one(argv: list[str]) -> None:
    outcome = dqexport(*argv)
    assert outcome.code == 2
    assert "Usage: " in outcome.out + outcome.err
    assert bool(outcome.out) == (not argv)  # without a command the help is what was asked for


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize(
    "command", ["", "build", "run", "chat", "verify", "inspect", "targets", "recipes", "doctor"]
)
def test_every_command_has_help(command: str, flag: str) -> None:
    outcome = dqexport(*command.split(), flag)
    assert outcome.code == 0 and not outcome.err
    assert f"dqexport {command}".strip() in outcome.out


def test_build_prints_its_manifest_as_json(tmp_path: Path) -> None:
    outcome = build(*QUICK_FP32, "-o", tmp_path / "b", "--json")
    assert Manifest.model_validate(json.loads(outcome.out)) == read_manifest(tmp_path / "b")


def test_inspect_prints_the_manifest_or_a_screen(reference_bundle: Path) -> None:
    facts = json.loads(dqexport("inspect", reference_bundle, "--json").out)
    assert Manifest.model_validate(facts) == read_manifest(reference_bundle)
    shown = dqexport("inspect", reference_bundle)
    assert shown.code == 0 and not shown.err and "arg-max agreement" in shown.out


def test_targets_and_recipes_as_table_and_json() -> None:
    parts = [*recipe_names.BITS, *(f"-{name}" for name in recipe_names.METHODS)]
    parts += [f"+{name}" for name in recipe_names.COMPONENTS]
    for command, names in (("targets", targets.names()), ("recipes", parts)):
        rows = json.loads(dqexport(command, "--json").out)
        assert [row["name"] for row in rows] == names
        table = dqexport(command).out.splitlines()
        assert [line.split()[0] for line in table if not line.startswith(" ")] == names


def test_doctor_speaks_json() -> None:
    findings = json.loads(dqexport("doctor", "--json").out)
    assert {"name", "ok", "seen", "hint"} <= findings[0].keys()
    shown = dqexport("doctor").out
    assert all(finding["name"] in shown for finding in findings)


def test_run_is_the_loop_of_the_bundle(reference_bundle: Path) -> None:
    outcome = dqexport("run", reference_bundle, "--help")
    assert outcome.code == 0
    for name in read_manifest(reference_bundle).decode.model_dump():
        assert f"--{name.replace('_', '-')}" in outcome.out
    assert f"dqexport run {reference_bundle}" in " ".join(outcome.out.split())
    outcome = dqexport("run", reference_bundle, "--ids", "5,7,9", "--json", "--gen-length", "4")
    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    assert answer["ids"][:3] == [5, 7, 9] and len(answer["ids"]) == 7


def test_run_passes_on_the_codes_of_the_loop(reference_bundle: Path) -> None:
    assert dqexport("run", reference_bundle, "--threads", "0", "--ids", "1").code == 2
    refused = dqexport("run", reference_bundle, "--ids", "1", "--cache", "exact")
    assert_refused(refused, "no exact cache", "--cache none")
    assert dqexport("chat", reference_bundle, "--ids", "1").code == 2
    assert_refused(dqexport("run", "/nowhere", "--ids", "1"), "/nowhere", "dqexport build")
