"""Shuts its own process in, then runs a program and its tests. `sandbox.py` starts it as a script.

stdin is a file: the secret word, then the orders as JSON, from where it is read first. Written to
stdout: `ready`, and at the end of all tests the word. It imports nothing of ours.
"""

import contextlib
import ctypes
import json
import os
import resource
import sys
import types
from collections.abc import Callable
from typing import Any

MEMORY = 512 * 2**20  # bytes of address space
FILE = 16 * 2**20  # bytes of one file, and of all files together where there are namespaces
PROCESSES = 32  # and threads, of the user; root is exempt

# linux/sched.h, linux/mount.h; mount_setattr has the same number on all architectures
NEW_NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
MOUNT_SETATTR, HERE, RECURSIVE = 442, -100, 0x8000
READ_ONLY, PRIVATE, NO_SUID_DEV_EXEC = 1, 1 << 18, 2 | 4 | 8

REFUSED = ("ctypes.", "fcntl.", "os.", "pty.", "shutil.", "signal.", "socket.", "subprocess.")
HARMLESS = {
    "os.chdir",
    "os.getxattr",
    "os.listdir",
    "os.listxattr",
    "os.putenv",
    "os.scandir",
    "os.unsetenv",
    "os.walk",
}
INSIDE = {"os.mkdir", "os.remove", "os.rmdir"}  # allowed on paths in the own folder
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read the orders, shut the door, run."""
    word_length = int(sys.argv[1])
    channel, verdict = os.dup(0), os.dup(1)
    with open(channel, "rb", closefd=False) as file:
        orders = json.loads(file.read())
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    with contextlib.suppress(AttributeError):  # not Linux
        isolate(os.getcwd())
    limit(int(orders["seconds"]) + 1)
    os.write(verdict, b"ready")
    # taken before the program can replace them
    run, read, write, leave = exec, os.pread, os.write, os._exit
    program, tests = (compile(orders[name], name, "exec") for name in ("program", "tests"))
    sys.argv[:] = [""]
    sys.addaudithook(watch(os.path.realpath(os.getcwd())))
    module = types.ModuleType("program")
    sys.modules["program"] = module
    namespace = vars(module)
    run(program, namespace)
    namespace["__name__"] = "__main__"
    run(tests, namespace)
    write(verdict, read(channel, word_length, 0))
    leave(0)  # threads that go on do not matter


def isolate(folder: str) -> None:
    """Namespaces of the own: no network, no other processes, all but `folder` read-only.

    Where the kernel grants none, or refuses a mount, that is left out.
    """
    libc, uid, gid = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(NEW_NAMESPACES):
        return
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    with contextlib.suppress(OSError):
        for name, content in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    change = (ctypes.c_uint64 * 4)(READ_ONLY, 0, PRIVATE, 0)  # set, clear, propagation, namespace
    libc.mount(b"none", b"/proc", b"tmpfs", 0, None)  # it would show the environment of others
    libc.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, change, ctypes.sizeof(change))
    own = os.fsencode(folder)
    libc.mount(b"none", own, b"tmpfs", NO_SUID_DEV_EXEC, f"size={FILE},mode=700".encode())
    os.chdir(folder)  # into what was just put there
    if child := os.fork():  # the first process of the namespace: all others end with it
        os.waitpid(child, 0)
        os._exit(0)


def limit(seconds: int) -> None:
    """Limits that the process cannot lift again; `seconds` of processor time."""
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def watch(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that lets a program compute, import, read, and write inside `folder`."""

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True  # opened before
        real = os.path.realpath(os.fsdecode(path))
        return os.path.commonpath((real, folder)) == folder

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2]
            allowed = not (isinstance(flags, int) and flags & WRITING) or inside(args[0])
        elif event in INSIDE:
            allowed = inside(args[0])
        else:
            allowed = event in HARMLESS or not event.startswith(REFUSED)
        if not allowed:
            raise PermissionError(f"{event} is refused here")

    return hook


if __name__ == "__main__":
    main()
