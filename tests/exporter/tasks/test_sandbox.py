"""Programs that mean harm, or only look right, do neither damage nor pass."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from exporter.errors import UserError
from exporter.tasks import sandbox
from exporter.tasks.sandbox import run_tests

DOUBLE = "def double(x):\n    return 2 * x\n"
TESTS = "assert double(2) == 4"


PAST_THE_HOOK = "import sys\nsys.audit = lambda *event: None\nimport subprocess\n"

# Undo the read-only mount argv[1] in two ways, uncover /proc, write argv[2]; error numbers of each.
# Then once more with all capabilities that a user namespace of the own brings.
UNDO = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
mount, target = sys.argv[1].encode(), sys.argv[2]

def failure(result):
    return ctypes.get_errno() if result else 0

def capable():
    sets = (ctypes.c_uint32 * 6)()
    assert not libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets)
    return any(sets)

def write():
    try:
        open(target, "w").close()
    except OSError as error:
        return error.errno
    return 0

def undo():
    change = (ctypes.c_uint64 * 4)(0, 1, 0, 0)
    cleared = failure(libc.syscall(442, -100, mount, 0, change, ctypes.sizeof(change)))
    remounted = failure(libc.mount(None, mount, None, 32 | 4096, None))
    return cleared, remounted, failure(libc.umount2(b"/proc", 2)), write()

print(capable(), *undo())
nested = not libc.unshare(0x10020000)
print(nested, capable(), *undo())
"""


def has_namespaces() -> bool:
    """Whether the kernel lets this process shut itself in."""
    found = subprocess.run(["unshare", "-r", "-n", "true"], capture_output=True, check=False)
    return found.returncode == 0


needs_namespaces = pytest.mark.skipif(
    not has_namespaces(), reason="the kernel grants no namespaces"
)


def wait_until(holds: Callable[[], bool]) -> None:
    """Until `holds`, which takes well below a second where no others are at work."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(*marks: Path) -> list[psutil.Process]:
    """Processes with one of `marks` among their arguments."""
    words, found = {str(mark) for mark in marks}, psutil.process_iter(["cmdline"])
    return [process for process in found if words & set(process.info["cmdline"] or [])]


def mark_jail(folder: Path) -> Path:
    """A copy of the jail, by which its processes are told from those of other runs."""
    return Path(shutil.copy(sandbox.JAIL, folder))


def leaver(mark: Path) -> str:
    """A program that starts a process which leaves its parent, group and session, and stays."""
    leave = (
        "import os, time\nif os.fork():\n    os._exit(0)\nos.setsid()\n"
        "if os.fork():\n    os._exit(0)\ntime.sleep(60)"
    )
    return f"{PAST_THE_HOOK}subprocess.run([sys.executable, '-c', {leave!r}, {str(mark)!r}])\n"


def test_what_passes_its_tests_passes() -> None:
    assert run_tests(DOUBLE, TESTS)
    assert not run_tests(DOUBLE, "assert double(2) == 5")
    assert not run_tests(DOUBLE.replace("2 *", "3 *"), TESTS)
    assert not run_tests("def double(x)", TESTS)  # does not parse
    assert not run_tests("", TESTS)


def test_ordinary_programs_have_what_they_need() -> None:
    imports = "import collections, dataclasses, decimal, heapq, itertools, math, random, re, typing"
    own = "@dataclasses.dataclass\nclass Point:\n    x: int"
    assert run_tests(f"{imports}\n{own}", "assert Point(1).x == math.gcd(1, 5)")
    assert run_tests("from __future__ import annotations\nimport dataclasses\n" + own, "Point(1)")
    threads = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert run_tests(threads, "assert not t.is_alive()")
    files = "import os, tempfile\nopen('own', 'w').write('hi')\ntempfile.TemporaryFile()"
    assert run_tests(files, "assert open('own').read() == 'hi'\nos.remove('own')")


def test_only_the_tests_are_the_main_program() -> None:
    asks = DOUBLE + "if __name__ == '__main__':\n    double(int(input()))"
    assert run_tests(asks, TESTS)
    guarded = "if __name__ == '__main__':\n    assert double(2) == 5"
    assert not run_tests(DOUBLE, guarded)


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "quit()",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import sys, types; sys.modules['program'] = types.ModuleType('other'); sys.exit(0)",
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit(0)",
        "print('ready'); print('ok'); import sys; sys.exit(0)",
        "import builtins, os; builtins.exec = os.write = print; raise SystemExit",
        "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'ready' * 9)\n"
        "    except OSError:\n        pass\nos._exit(0)",
    ],
)
def test_an_early_end_is_no_success(program: str) -> None:
    assert not run_tests(program, "pass")
    assert not run_tests("", program + "\nassert False")


def test_tests_cannot_be_emptied() -> None:
    empties = "import builtins\nbuiltins.compile = lambda *given: (lambda: 0).__code__\n"
    assert not run_tests(empties + "builtins.exec = lambda *given: None", "assert False")


def test_endless_programs_are_stopped_in_time() -> None:
    for program in ("while True: pass", "import time; time.sleep(60)", "input()"):
        start = time.monotonic()
        assert not run_tests(program, "pass", seconds=0.5)
        # starting a process takes well below a second even where others are at work
        assert time.monotonic() - start < 10


def test_waiting_threads_do_not_hold_up_the_verdict() -> None:
    waits = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    start = time.monotonic()
    assert run_tests(waits, "pass", seconds=30)
    assert time.monotonic() - start < 10


def test_processes_are_refused() -> None:
    before = len(psutil.pids())
    for program in (
        "import os\nwhile True:\n    os.fork()",
        "import subprocess; subprocess.Popen(['sleep', '60'])",
        "import os; os.system('true')",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing as m\nif __name__ == 'program':\n    m.Process().start()",
    ):
        assert not run_tests(program, "pass")
        assert run_tests(
            "", f"import subprocess\ntry:\n    exec({program!r})\nexcept OSError:\n    1"
        )
    assert len(psutil.pids()) < before + 50


@pytest.mark.parametrize("program", ["import os, time\nos.setsid()\ntime.sleep(60)", "os = 1 / 0"])
def test_the_program_has_ended_with_the_run(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jail = mark_jail(tmp_path)
    monkeypatch.setattr(sandbox, "JAIL", jail)
    assert not run_tests(program, "pass", seconds=1)
    assert not running(jail)


@needs_namespaces
def test_processes_that_left_have_ended_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jail, mark = mark_jail(tmp_path), tmp_path / "left"
    monkeypatch.setattr(sandbox, "JAIL", jail)
    assert run_tests(leaver(mark), "pass")
    assert not running(jail, mark)
    # neither if it no longer listens, and calls off what may end it with its parent
    deaf = "import ctypes, os, signal, time\nctypes.CDLL(None).prctl(1, 0)\nos.setsid()\n"
    deaf += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    start = f"subprocess.run([sys.executable, '-c', {deaf!r}, {str(mark)!r}])"
    assert not run_tests(PAST_THE_HOOK + start, "pass", seconds=1)
    assert not running(jail, mark)


@needs_namespaces
def test_processes_end_with_the_caller(tmp_path: Path) -> None:
    jail, mark = mark_jail(tmp_path), tmp_path / "left"
    calls = (
        f"from pathlib import Path\nfrom exporter.tasks import sandbox\n"
        f"sandbox.JAIL = Path({str(jail)!r})\n"
        f"sandbox.run_tests({leaver(mark)!r}, 'import time; time.sleep(60)', 60)"
    )
    with subprocess.Popen([sys.executable, "-c", calls]) as caller:
        wait_until(lambda: bool(running(mark)))
        caller.kill()
    wait_until(lambda: not running(jail, mark))


def test_memory_is_limited() -> None:
    assert not run_tests("hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 24))", "pass")
    assert run_tests(
        "try:\n    bytearray(1 << 32)\nexcept MemoryError:\n    full = 1", "assert full"
    )


def test_output_goes_nowhere() -> None:
    start = time.monotonic()
    assert run_tests("for _ in range(100):\n    print('x' * (1 << 20))", "pass")
    assert time.monotonic() - start < 10


def test_files_stay_small_and_inside(tmp_path: Path) -> None:
    target, before = tmp_path / "target", sorted(tmp_path.iterdir())
    target.write_text("safe")
    for program in (
        f"open({str(target)!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.remove({str(target)!r})",
        f"import os; os.rename({str(target)!r}, 'stolen')",
        f"import os; os.truncate({str(target)!r}, 0)",
        f"import os; os.chmod({str(target)!r}, 0)",
        f"import os; os.symlink({str(target)!r}, 'link'); open('link', 'w')",
        f"import os; os.chdir({str(tmp_path)!r}); open('target', 'w')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import pathlib; pathlib.Path({str(target)!r}).unlink()",
        "open('large', 'wb').write(bytes(1 << 25))",
    ):
        assert not run_tests(program, "pass"), program
    assert target.read_text() == "safe"
    assert sorted(tmp_path.iterdir()) == [*before, target]


@pytest.mark.parametrize(
    "replace",
    [
        "import __main__ as jail\njail.REFUSED, jail.WRITING = ('zzz',), 0",
        "import __main__ as jail\njail.HARMLESS = jail.INSIDE = {'ctypes.dlopen', 'os.remove'}",
        "import __main__ as jail\njail.watch = jail.isinstance = lambda *given: True",
        "import builtins as b\nold = isinstance\nb.isinstance = lambda x, y: y is int or old(x, y)",
        "import builtins\nbuiltins.PermissionError = Warning",
        "import os\nos.path.realpath = os.fsdecode = lambda path: os.getcwd()",
        "import os\nhere = os.getcwd()\nos.path.commonpath = lambda paths: here",
    ],
)
def test_replaced_names_do_not_disarm_the_hook(replace: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("safe")
    actions = (f"open({str(target)!r}, 'w')", f"os.remove({str(target)!r})", "ctypes.CDLL(None)")
    for action in actions:
        caught = (
            f"import ctypes, os\nrefusal = PermissionError\n{replace}\n"
            f"try:\n    {action}\nexcept refusal as error:\n    refused = 'here' in str(error)"
        )
        assert run_tests(caught, "assert refused"), action  # a read-only mount raises otherwise
    assert target.read_text() == "safe"


@needs_namespaces
def test_the_walls_cannot_be_undone(tmp_path: Path) -> None:
    """Not past the hook, and not with a user namespace of the program's own."""
    mount = next(str(path) for path in tmp_path.parents if os.path.ismount(path))
    target, folder = tmp_path / "target", tmp_path / "folder"
    folder.mkdir()
    shut_in = f"import runpy\nrunpy.run_path({str(sandbox.JAIL)!r})['isolate']({str(folder)!r})"
    control = subprocess.run(
        [sys.executable, "-I", "-S", "-c", shut_in + UNDO, mount, target],
        capture_output=True,
        text=True,
        check=True,
    )
    assert control.stdout.startswith("True 0 0 0 0\n")  # each step works with the capabilities
    target.unlink()

    arguments = ["-I", "-S", "-c", UNDO, mount, str(target)]
    attack = (
        f"{PAST_THE_HOOK}done = subprocess.run([sys.executable, *{arguments}],"
        " stdout=subprocess.PIPE, text=True)"
    )
    no = f"{errno.EPERM} {errno.EPERM}"
    plain = f"{no} {errno.EPERM} {errno.EROFS}\n"
    locked = f"{no} {errno.EINVAL} {errno.EROFS}\n"
    seen = (f"False {plain}True True {locked}", f"False {plain}False False {plain}")
    assert run_tests(attack, f"assert done.stdout in {seen}, done.stdout")
    assert not target.exists()


@needs_namespaces
def test_devices_cannot_be_opened() -> None:
    """They can be written on a read-only mount."""
    caught = "try:\n    open('/dev/null')\nexcept PermissionError:\n    refused = True"
    assert run_tests(caught, "assert refused")


@needs_namespaces
def test_files_are_safe_past_the_hook(tmp_path: Path) -> None:
    """C code asks no hook, but the file system is read-only."""
    from_c = (
        "import _ctypes, ctypes, os\n"
        "write = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object)"
    )
    assert not run_tests(from_c + "(('open', ctypes.pythonapi))", "pass")
    touch = f"done = subprocess.run(['touch', {str(tmp_path / 'new')!r}])"
    assert run_tests(PAST_THE_HOOK + touch, "assert done.returncode == 1")
    assert not list(tmp_path.iterdir())


def test_there_is_no_network() -> None:
    for program in (
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
        "import socket; socket.socket().bind(('127.0.0.1', 0))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')",
    ):
        caught = f"try:\n    exec({program!r})\nexcept OSError as error:\n    seen = str(error)"
        assert run_tests(caught, "assert 'is refused here' in seen"), program


def test_nothing_of_the_caller_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    assert run_tests("import os, sys", "assert 'TOKEN' not in os.environ and sys.argv == ['']")
    assert run_tests("import os", "assert os.listdir('.') == []")
    assert not run_tests("import numpy", "pass")  # no packages either


def test_the_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_tests("open('own', 'w').write('hi')", "pass")
    run_tests("import os; os.mkdir('a'); os._exit(1)", "pass")
    assert not list(tmp_path.iterdir())


def test_a_sandbox_that_does_not_start_is_no_wrong_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "JAIL", tmp_path / "absent.py")
    with pytest.raises(UserError, match=r"does not start.*absent\.py"):
        run_tests(DOUBLE, TESTS)


def test_the_jail_needs_nothing_but_the_standard_library() -> None:
    code = f"import runpy, sys; runpy.run_path({str(sandbox.JAIL)!r}); print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    names = {name.partition(".")[0] for name in found.stdout.split()}
    assert names <= sys.stdlib_module_names | {"__main__", "sitecustomize"}
