"""Every setting of quantization is a flag of every command that quantizes, and arrives."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from exporter.errors import UserError
from exporter.quant_flags import LEAST, takes_quantization
from exporter.quant_options import QuantOptions
from exporter.tasks import reference_folder
from tests.commands import GOLDEN, assert_refused, dqexport

SORTING = reference_folder() / "tasks" / "sorting.jsonl"
COMMANDS: dict[str, list[str | Path]] = {
    "build": ["build", GOLDEN / "llada", "--recipe", "w4a16"],
    "eval": ["eval", "reference", SORTING, "--limit", "1", "--recipe", "w4a16"],
    "ablate": ["ablate", "reference", SORTING, "--limit", "1", "--recipe", "w4a16"],
}
MAKERS = (
    "exporter.build.make_recipe",
    "exporter.evaluation.simulated_subject.make_recipe",
    "exporter.ablation.ablate.make_recipe",
)
OTHERS: dict[str, Any] = {
    "group": 32, "activation": "group", "q_bits": 4, "k_bits": 16, "v_bits": 8, "p_bits": 16,
    "kv_bits": 8, "attention_limit": 0.02,
    "p_scale": "static", "clip": False, "act_order": True, "damping": 0.05, "rank": 3,
    "rotation_seed": 4, "samples": 9, "bins": "trajectory", "visible_score": "zero",
    "alphas": "wide", "mean_bits": 5.5, "budget": 0.25, "head_bits": 4, "embed_bits": 8, "seed": 11,
}  # fmt: skip
REFUSED = {"ablate": {"seed", "mean_bits", "budget"}}  # a trial has its own
COMMAND = pytest.mark.parametrize("command", COMMANDS)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def taken(command: str) -> dict[str, Any]:
    """A value for every flag that the command can use."""
    return {n: value for n, value in OTHERS.items() if n not in REFUSED.get(command, ())}


def given(name: str, value: object) -> list[str]:
    """The command line that sets a field."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    return [flag(name), str(value)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[QuantOptions]:
    """Options that a command asks for a recipe with; it goes no further."""
    found: list[QuantOptions] = []

    def watched(name: str, spec: object, options: QuantOptions, compute: str) -> None:
        found.append(options)
        raise UserError("seen")

    for maker in MAKERS:
        monkeypatch.setattr(maker, watched)
    return found


def test_the_values_below_are_all_and_none_is_the_default() -> None:
    defaults = asdict(QuantOptions())
    assert OTHERS.keys() == defaults.keys()
    assert all(OTHERS[name] != defaults[name] for name in defaults)


@COMMAND
def test_every_field_is_one_flag_with_its_text(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # no text is broken into lines
    shown = dqexport(command, "--help").out
    for each in fields(QuantOptions):
        (line,) = re.findall(rf"^\W*{flag(each.name)}\s.*$", shown, re.MULTILINE)
        assert each.metadata["help"] in line
        if get_type_hints(QuantOptions)[each.name] in (bool, bool | None):
            assert flag(f"no_{each.name}") in line


@COMMAND
def test_without_flags_there_are_the_defaults(command: str, seen: list[QuantOptions]) -> None:
    assert_refused_as_seen(command, [])
    assert seen == [QuantOptions()]


@COMMAND
def test_each_flag_sets_its_field_and_no_other(command: str, seen: list[QuantOptions]) -> None:
    for name, value in taken(command).items():
        seen.clear()
        assert_refused_as_seen(command, given(name, value))
        assert seen == [QuantOptions(**{name: value})]


@COMMAND
def test_all_flags_together(command: str, seen: list[QuantOptions]) -> None:
    wanted = taken(command)
    assert_refused_as_seen(command, [word for item in wanted.items() for word in given(*item)])
    assert seen == [QuantOptions(**wanted)]


def assert_refused_as_seen(command: str, flags: list[str]) -> None:
    outcome = dqexport(*COMMANDS[command], *flags)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.endswith("error: seen\n")


@COMMAND
def test_wrong_values_are_wrong_usage_and_name_the_flag(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    wrong = [(name, "many") for name, value in OTHERS.items() if not isinstance(value, bool)]
    wrong += [(name, str(least - 1)) for name, least in LEAST.items()]
    for name, value in wrong:
        outcome = dqexport(*COMMANDS[command], flag(name), value)
        assert (outcome.code, outcome.out) == (2, ""), name
        assert f"'{flag(name)}'" in outcome.err
    for name in ("clip", "act_order"):
        outcome = dqexport(*COMMANDS[command], f"{flag(name)}=many")
        assert (outcome.code, outcome.out) == (2, "") and f"'{flag(name)}'" in outcome.err


@COMMAND
@pytest.mark.parametrize(
    ("flags", "says", "hint"),
    [
        (["--group", "48"], "Group 48", "Groups that fit"),
        (["--activation", "token"], "--activation token", "w4a8"),
        *(([f"--{n}-bits", "5"], f"--{n}-bits 5", "16") for n in ("q", "k", "v", "p")),
        *(([f"--{n}-bits", "5"], f"--{n}-bits 5", f"--{n}-bits 8") for n in ("head", "embed")),
    ],
)
def test_values_that_no_recipe_takes_get_a_hint(
    command: str, flags: list[str], says: str, hint: str, tmp_path: Path
) -> None:
    assert_refused(dqexport(*COMMANDS[command], *flags, "--out", tmp_path / "out"), says, hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "says", "hint"),
    [
        (["--seed", "3"], "--seed 3", "--first-seed 3"),
        (["--mean-bits", "5"], "Mixed precision", "eval --recipe"),
        (["--budget", "0.1"], "Mixed precision", "eval --recipe"),
    ],
)
def test_an_ablation_refuses_what_it_would_not_heed(
    flags: list[str], says: str, hint: str, tmp_path: Path
) -> None:
    """It has several seeds, and states the bits of a recipe, not those of a trial."""
    outcome = dqexport(*COMMANDS["ablate"], *flags, "--out", tmp_path / "out")
    assert_refused(outcome, says, hint)
    assert not list(tmp_path.iterdir())


def test_flags_of_its_own_stay_as_they_are() -> None:
    def command(quant: QuantOptions, word: str = "a", *, loud: bool = False) -> None:
        """Its text."""
        got.append((quant, word, loud))

    got: list[tuple[QuantOptions, str, bool]] = []
    wrapped = takes_quantization(command)
    assert (wrapped.__name__, wrapped.__doc__) == ("command", "Its text.")
    wrapped(**asdict(QuantOptions(rank=3)), word="b", loud=True)
    assert got == [(QuantOptions(rank=3), "b", True)]
