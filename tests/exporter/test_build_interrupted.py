"""A build that is killed at any point leaves nothing that looks finished, and goes on."""

import functools
import signal
import subprocess
import time
from pathlib import Path

import pytest

from exporter import emit
from exporter.work import open_work
from tests.commands import (
    DQEXPORT,
    GOLDEN,
    ONE_THREAD,
    QUICK_W4,
    assert_refused,
    build,
    changed,
    content,
    dqexport,
    tmpfs,
)

# states enough that a block takes some tenths of a second
SLOW = (str(GOLDEN / "llada"), "--no-gate", "--gen-length", "32", "--calib-prompts", "16",
        "--samples", "512", "--gate-prompts", "2")  # fmt: skip
PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed build with the same options makes."""
    out = tmp_path_factory.mktemp("undisturbed") / "b"
    build(*SLOW, "-o", out)
    return content(out)


def start_until(pattern: str, folder: Path, *argv: str) -> subprocess.Popen[str]:
    """Start a real `dqexport build SLOW ARGV` and return once a file appears in `folder`."""
    # what a shell starts in the background ignores SIGINT, and hands that down
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [DQEXPORT, "build", *SLOW, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=ONE_THREAD, preexec_fn=heeding,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.001)
    return process


def test_killed_while_it_quantizes(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    out, work = tmp_path / "b", tmp_path / "work"
    argv = ("--work", str(work), "-o", str(out))
    process = start_until("quantize-*/block-0000.json", work, *argv)
    process.send_signal(signal.SIGKILL)
    shown, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL and not shown
    assert not list(tmp_path.rglob("manifest.json"))
    finished = {n: t for n, t in changed(work).items() if "/block-" in n or "calibrate" in n}
    assert not any("block-0002.json" in name for name in finished), "killed too late to test"
    assert any("block-0000.json" in name for name in finished)
    assert_refused(dqexport("verify", out), "manifest.json", "finished bundle")
    again = build(*SLOW, *argv)
    assert "roll out" not in again.err
    whole = {name: t for name, t in finished.items() if not name.endswith(".partial")}
    done = [n for n in whole if n.replace(".safetensors", ".json") in whole or "calibrate" in n]
    assert {name: changed(work)[name] for name in done} == {name: whole[name] for name in done}
    assert content(out) == undisturbed


def test_stopped_with_control_c(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    out = tmp_path / "b"
    process = start_until(".work/calibrate-*/counts.json", out, "-o", str(out))
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert not shown and "Traceback" not in said
    assert said.endswith("error: Interrupted\n\nhint: A build goes on where it was: run the same "
                         "command again\n")  # fmt: skip
    assert {entry.name for entry in out.iterdir()} == {".work"}
    assert "roll out" not in build(*SLOW, "-o", out).err
    assert content(out) == undisturbed


@pytest.mark.parametrize("work", [[], ["--work"]], ids=["own-work", "shared-work"])
def test_stopped_while_it_publishes(tmp_path: Path, quick_bundle: Path, work: list[str]) -> None:
    """A folder where a file belongs stops the build there, as a kill would."""
    out = tmp_path / "b"
    (out / ".work").mkdir(parents=True)
    (out / "manifest.sha256" / "in the way").mkdir(parents=True)
    argv = (*QUICK_W4, *work, *[str(tmp_path / "work") for _ in work], "-o", str(out))
    outcome = dqexport("build", *argv)
    assert outcome.code == 1 and outcome.err.splitlines()[-1].startswith("error: ")
    assert (out / "graphs").is_dir() and not (out / "manifest.json").exists()
    (out / "manifest.sha256" / "in the way").rmdir()
    (out / "manifest.sha256").rmdir()
    build(*argv)
    assert content(out) == content(quick_bundle)
    assert not (out / ".work").exists()


def test_a_work_folder_on_another_disk(tmp_path: Path, quick_bundle: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=16m"):
        build(*QUICK_W4, "--work", tmp_path / "disk" / "work", "-o", tmp_path / "b")
        assert content(tmp_path / "b") == content(quick_bundle)
        build(*QUICK_W4, "--force", "--work", tmp_path / "disk" / "work", "-o", tmp_path / "b")
    assert content(tmp_path / "b") == content(quick_bundle)
    assert not (tmp_path / "b" / emit.WORK).exists()


def test_two_builds_do_not_share_a_work_folder(tmp_path: Path) -> None:
    out = tmp_path / "b"
    with open_work(out / emit.WORK):
        assert_refused(
            dqexport("build", *QUICK_W4, "-o", out), "Another build is at work", "--work"
        )
