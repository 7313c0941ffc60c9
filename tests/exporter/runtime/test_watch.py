"""The canvas drawn in place: what is where, never beyond the terminal, and nothing left behind."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.runtime import watch
from exporter.runtime.canvas_view import DONE, EDITED, FRESH, MASK, OPEN, PROMPT
from exporter.runtime.loop import Result, Step, decode
from exporter.runtime.settings import Settings
from exporter.runtime.statistics import Clock
from exporter.runtime.stream import unseen
from exporter.runtime.task import Task, make_canvas, make_task
from exporter.runtime.watch import Picture, Watch
from tests.commands import DQEXPORT
from tests.terminal import Program, Terminal
from tests.tiny_bundle import DECODE, EOS, FACTS, Twin
from tests.tiny_bundle import MASK as MASK_ID

CODES = re.compile(r"\x1b\[[0-9;]*m")


def make(given: Settings, prompt: list[int]) -> tuple[Task, Clock, Iterator[Step]]:
    task = make_task(FACTS, given, *make_canvas([prompt], given.gen_length, FACTS))
    result = Result(task.canvas)
    clock = Clock(Twin(), result, MASK_ID)
    steps = decode(
        clock.session, FACTS, given, task.canvas, task.prompt_length, task.key_mask, result
    )
    return task, clock, clock.timed(steps)


def set_size(monkeypatch: pytest.MonkeyPatch, columns: int, rows: int) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, rows)))


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (20, 5), (9, 4), (3, 3), (1, 2)])
@pytest.mark.parametrize("keep", [True, False])
def test_every_picture_replaces_the_one_before(
    monkeypatch: pytest.MonkeyPatch, columns: int, rows: int, keep: bool
) -> None:
    """Nothing scrolls away, no line is too long, and the last picture is what stays."""
    set_size(monkeypatch, columns, rows)
    given = replace(DECODE, gen_length=32, early_stop=False)
    task, clock, steps = make(given, [5, 7])
    terminal = Terminal(max(columns, 3), rows)
    drawn = 0

    def write(text: str) -> None:
        nonlocal drawn
        drawn += 1
        terminal.write(text)

    monkeypatch.setattr(watch, "_write", write)
    Watch(None, 0.0, keep)(task, steps, clock)
    assert drawn == 2 + 1 + given.gen_length + 1 + (not keep)
    assert terminal.scrolled == 0 and terminal.cursor
    if not keep:
        assert not any(terminal.lines) and terminal.row == 0
        return
    shown = [line.rstrip() for line in terminal.lines if line.strip()]
    assert shown[0].startswith("32/32 tokens"[: max(columns - 1, 2)])
    if columns == 80:
        assert [int(i) for line in shown[1:] for i in line.split()] == task.canvas[0].tolist()


def test_a_changed_size_clears_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(40, 10)
    monkeypatch.setattr(watch, "_write", terminal.write)
    task, clock, steps = make(DECODE, [5, 7])
    set_size(monkeypatch, 20, 6)

    def grown() -> Iterator[Step]:
        for step in steps:
            yield step
            set_size(monkeypatch, 40, 10)

    Watch(None, 0.0)(task, grown(), clock)
    assert terminal.lines[0].startswith("16/16 tokens  16 forwards")
    ids = [int(i) for line in terminal.lines[1:] for i in line.split()]
    assert ids == task.canvas[0].tolist()


def test_the_cursor_comes_back_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(80, 24)
    monkeypatch.setattr(watch, "_write", terminal.write)
    task, clock, steps = make(DECODE, [5, 7])

    def interrupted() -> Iterator[Step]:
        yield next(steps)
        assert not terminal.cursor
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Watch(None, 0.0)(task, interrupted(), clock)
    assert terminal.cursor and terminal.column == 0 and not terminal.lines[terminal.row]


def test_each_position_is_what_the_step_made_of_it() -> None:
    task, clock, _ = make(DECODE, [5, MASK_ID, 7])
    task.canvas[0, [1, 4, 6]] = 9, 8, EOS
    step = Step(2, 0, task.canvas.copy(), np.arange(3, 11), [(0, 4, 8)], {}, edits=[(0, 6, 3, EOS)])
    kinds = Picture(task, None, step, clock.read()).kinds()
    assert kinds[:3] == [PROMPT, DONE, PROMPT]
    assert kinds[3:7] == [OPEN, FRESH, OPEN, EDITED]
    assert set(kinds[7:11]) == {OPEN} and set(kinds[11:]) == {MASK}
    again = replace(step, edits=[(0, 5, 3, MASK_ID)])  # p2 puts masks back
    assert Picture(task, None, again, clock.read()).kinds()[5] == OPEN


def test_without_colour_weight_and_reversal_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    def codes() -> set[str]:
        task, _, steps = make(DECODE, [5])
        parts: list[str] = []
        monkeypatch.setattr(watch, "_write", parts.append)
        set_size(monkeypatch, 80, 24)
        Watch(None, 0.0)(task, steps, Clock(Twin(), Result(task.canvas), MASK_ID))
        return set(CODES.findall("".join(parts)))

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert any("42" in code for code in codes())
    monkeypatch.setenv("NO_COLOR", "1")
    assert codes() == {"\x1b[2m", "\x1b[7m", "\x1b[0m"}


def test_time_on_the_screen_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_write", lambda text: None)
    task, clock, steps = make(replace(DECODE, gen_length=8, steps=2), [5])
    Watch(None, 0.05)(task, steps, clock)
    shown = clock.read()
    assert shown.forwards == 2
    plain, other, more = make(replace(DECODE, gen_length=8, steps=2), [5])
    unseen(plain, more, other)
    assert other.read().tokens == shown.tokens
    assert shown.seconds < 0.05  # three pauses were made


def test_a_real_bundle_is_watched_on_a_real_terminal(reference_bundle: Path) -> None:
    argv = [sys.executable, str(reference_bundle / "decode.py"), "--prompt", "__A123+456="]
    program = Program([*argv, "--watch", "0"], columns=60, rows=10)
    code, shown = program.finish()
    assert code == 0
    terminal = Terminal(60, 10)
    terminal.write(shown)
    assert terminal.cursor and not terminal.scrolled
    assert terminal.lines[0].startswith("8/8 tokens  8 forwards")
    assert terminal.lines[1] == "__A123+456=0579¶¶¶¶"
    assert terminal.lines[2] == "0579"
    assert all(f"step {n}  " in shown for n in range(1, 9))


def test_ctrl_c_while_watching_leaves_a_usable_terminal(reference_bundle: Path) -> None:
    argv = [DQEXPORT, "run", str(reference_bundle), "--prompt", "__A123+456="]
    program = Program([*argv, "--watch", "30"])
    program.wait_for("0/8 tokens")
    program.type("\x03")
    code, shown = program.finish()
    assert code == 130
    assert watch.SHOW in shown and "Traceback" not in shown
    assert shown.endswith("error: Interrupted\n")  # nothing about builds that go on
