"""The line of progress: on a terminal, and gone before anything else is printed."""

import json
import sys
from pathlib import Path

from tests.terminal import Program, Terminal
from tests.tiny_bundle import write_bundle


def test_progress_is_shown_between_the_answers(tmp_path: Path) -> None:
    write_bundle(folder := tmp_path / "bundle")
    (tmp_path / "prompts.txt").write_text("ab\ncde\n")
    argv = [sys.executable, str(folder / "decode.py"), "--file", str(tmp_path / "prompts.txt")]
    code, shown = Program([*argv, "--json"]).finish()
    assert code == 0
    assert "1/2 prompts, " in shown and "2/2 prompts, " in shown
    terminal = Terminal(10_000, 24)
    terminal.write(shown)
    lines = [line for line in terminal.lines if line]
    assert [json.loads(line)["index"] for line in lines] == [0, 1]
