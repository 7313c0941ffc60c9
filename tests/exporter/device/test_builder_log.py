"""What people see while an engine is built."""

import pytest

from exporter.device.builder_log import CLEAR, Phases, error_log
from tests.stand_in_builder import TensorRT


def build(phases: Phases) -> None:
    phases.start("engine", None, 2)
    phases.start("tactics", "engine", 40)
    phases.step("tactics", 0)
    phases.step("engine", 0)
    phases.finish("tactics")
    phases.finish("engine")


def test_elsewhere_than_on_a_terminal_outer_phases_are_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    build(Phases("full"))
    assert capsys.readouterr().err == "full: engine\n"


def test_on_a_terminal_one_line_changes_and_goes_in_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    build(Phases("full"))
    shown = capsys.readouterr().err
    assert "\n" not in shown
    states = shown.split(CLEAR)
    assert states[2:] == [
        "full: engine 0/2, tactics 0/4", "full: engine 0/2, tactics 1/4",
        "full: engine 1/2, tactics 1/4", "full: engine 1/2", "",
    ]  # fmt: skip
    assert all(len(state) < 30 for state in states)


def test_errors_alone_are_kept() -> None:
    log = error_log(TensorRT())
    for severity in ("warning", "error", "internal"):
        log.log(severity, severity)
    assert log.errors == ["error", "internal"]
