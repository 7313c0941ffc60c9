"""`--chat` on a real terminal with the reference model, and without one."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import DQEXPORT, ONE_THREAD
from tests.terminal import Program
from tests.tiny_bundle import write_bundle

TEMPLATE = "{{ messages[-1].content }}"  # the puzzles of the reference model have no history
TOLD = "{% for m in messages %}{{ m.content }};{% endfor %}"


@pytest.fixture(scope="module")
def bundle(reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "bundle"
    shutil.copytree(reference_bundle, folder)
    (folder / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_a_conversation_on_a_terminal(bundle: Path) -> None:
    program = Program([DQEXPORT, "chat", bundle])
    assert "no chat template" not in program.wait_for("> ")
    program.type("__A123+456=\n")
    assert "0579" in program.wait_for("\n> ").splitlines()
    program.type("/set threshold=7\n")
    assert "error: threshold 7.0 is out of range" in program.wait_for("\n> ")
    program.type("/set gen_length=4 block_length=4\n/settings\n")
    assert "block_length=4" in program.wait_for("max_forwards=")
    program.wait_for("\n> ")
    program.type("/set gen_length=8 block_length=8 sampler=threshold\n")
    program.wait_for("\n> ")
    # between the prompt and its wait for keys, Python's readline would note a Ctrl-C and sleep on
    time.sleep(0.5)
    program.type("\x03")  # nothing runs: it says how to leave
    program.wait_for("Ctrl-D leaves)\n> ")
    program.type("_S58982066=\n")
    assert "02566889" in program.wait_for("\n> ").splitlines()
    program.type("\x04")
    code, shown = program.finish()
    assert code == 0 and "Traceback" not in shown


def test_ctrl_c_ends_the_answer_alone(bundle: Path) -> None:
    program = Program([sys.executable, bundle / "decode.py", "--chat", "--watch", "20"])
    program.wait_for("> ")
    program.type("__A123+456=\n")
    program.wait_for("0/8 tokens")
    program.type("\x03")
    program.wait_for("(interrupted: this turn is forgotten)\n> ")
    program.type("/exit\n")
    assert program.finish()[0] == 0


def talk(bundle: Path, lines: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A conversation through pipes."""
    return subprocess.run(
        [sys.executable, bundle / "decode.py", "--chat", *options],
        input=lines, capture_output=True, text=True, env=ONE_THREAD, timeout=60,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of at most 64 tokens that answers with 16, and is told all turns."""
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    write_bundle(folder)
    (folder / "tokenizer" / "chat_template.jinja").write_text(TOLD)
    return folder


def test_what_no_longer_fits_is_forgotten(tiny: Path) -> None:
    long = "x" * 60
    run = talk(tiny, f"{'a' * 20}\n{'b' * 20}\n{long}\n/reset\nc\n/foo\n", "--stats")
    assert run.returncode == 0 and "Traceback" not in run.stderr
    assert run.stderr.count("forgot the oldest turn") == 1
    assert "error: a prompt of 61 tokens and gen_length 16 are more than the 64" in run.stderr
    assert "(a new conversation)" in run.stderr and "error: no command /foo" in run.stderr
    assert run.stderr.count("tokens/forward") == 3


def test_pipes_carry_answers_alone(tiny: Path) -> None:
    streamed = talk(tiny, "hi\n")
    quiet = talk(tiny, "hi\n", "--no-stream")
    alone = subprocess.run(
        [sys.executable, tiny / "decode.py", "--prompt", "hi", "--json"],
        capture_output=True, text=True, check=True, env=ONE_THREAD,
    )  # fmt: skip
    assert streamed.stdout == quiet.stdout == json.loads(alone.stdout)["text"] + "\n"


def test_a_model_without_a_template_is_told_once(reference_bundle: Path) -> None:
    run = talk(reference_bundle, "__A123+456=\n__A123+456=\n")
    assert run.stdout == "0579\n0579\n"
    assert run.stderr.count("each turn stands on its own") == 1
