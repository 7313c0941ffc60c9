import logging

import pytest

from exporter.progress import Progress, TerminalProgress


def test_plain_lines_tell_stage_count_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))  # a second reading, another six seconds
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with TerminalProgress().stage("quantize", 4) as step:
        for _ in range(4):
            step()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "quantize: 4 steps"
    # 12 s for the first two: as long again for the other two
    assert lines[1:] == ["quantize: 2/4, 0:00:12 left"]


def test_the_library_is_quiet_but_logs(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), Progress().stage("lower", 2) as step:
        step()
    assert capsys.readouterr() == ("", "")
    assert "lower: 2 steps" in caplog.text
