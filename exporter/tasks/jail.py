"""Shuts its own process in, then runs a program and its tests. `sandbox.py` starts it as a script.

stdin is a file: the secret word, then the orders as JSON, from where it is read first. Written to
stdout: `ready`, and at the end of all tests the word; to stderr why it cannot start. The arguments
are the length of the word and the process that waits for the verdict. It imports nothing of ours.

On Linux, with namespaces, there are three processes, and the program is the third: the first stays
outside, where nothing inside can name it, until the second, which is the first of the namespace and
takes all others with it, has ended.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
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
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC, PRIVATE = 1, 2, 4, 8, 1 << 18
# linux/prctl.h, linux/capability.h
SIGNAL_AT_PARENTS_DEATH, DROP_FROM_BOUNDING_SET, NO_NEW_PRIVILEGES = 1, 24, 38
CAPABILITIES_VERSION, CAPABILITIES = 0x20080522, 64

REFUSED = ("ctypes.", "fcntl.", "os.", "pty.", "shutil.", "signal.", "socket.", "subprocess.")
HARMLESS = frozenset(
    {
        "os.chdir",
        "os.getxattr",
        "os.listdir",
        "os.listxattr",
        "os.putenv",
        "os.scandir",
        "os.unsetenv",
        "os.walk",
    }
)
INSIDE = frozenset({"os.mkdir", "os.remove", "os.rmdir"})  # allowed on paths in the own folder
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read the orders, shut the door, run."""
    word_length, caller = int(sys.argv[1]), int(sys.argv[2])
    channel, verdict = os.dup(0), os.dup(1)
    with open(channel, "rb", closefd=False) as file:
        orders = json.loads(file.read())
    nothing = os.open(os.devnull, os.O_RDWR)  # no device can be opened later
    if sys.platform == "linux":
        end_with(lambda: os.getppid() != caller)
        isolate(os.getcwd())
        drop_privileges()
    limit(int(orders["seconds"]) + 1)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
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


def end_with(has_ended: Callable[[], bool]) -> None:
    """Have the kernel kill this process when its parent ends, or end now if the parent `has_ended`.

    Children do not inherit it, and a program can take it back: it is for processes that run none,
    and, without namespaces, for programs that do not think of it.
    """
    ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL, 0, 0, 0)
    if has_ended():  # before it was asked for
        os._exit(1)


def isolate(folder: str) -> None:
    """Namespaces of the own: no network, no other processes, all but `folder` read-only.

    Returns in another process. What makes mounts can undo them: see `drop_privileges`. Where the
    kernel grants no namespaces nothing happens; a mount that it refuses is left out.
    """
    libc, uid, gid = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(NEW_NAMESPACES):
        return
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    with contextlib.suppress(OSError):
        for name, content in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    harmless = READ_ONLY | NO_SUID | NO_DEVICES  # a device can be written on a read-only mount
    change = (ctypes.c_uint64 * 4)(harmless, 0, PRIVATE, 0)  # set, clear, propagation, namespace
    libc.mount(b"none", b"/proc", b"tmpfs", 0, None)  # it would show the environment of others
    libc.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, change, ctypes.sizeof(change))
    own, options = os.fsencode(folder), f"size={FILE},mode=700".encode()
    libc.mount(b"none", own, b"tmpfs", NO_SUID | NO_DEVICES | NO_EXEC, options)
    os.chdir(folder)  # into what was just put there
    enter()


def enter() -> None:
    """Go on as the second process of the namespace; return only there.

    The process outside ends on SIGTERM, or after the first inside, but never before all inside have
    ended: the kernel lets the first end as the last. The first runs no program and keeps its
    privileges, so that a program, which has none, cannot trace it; to end it ends the program.
    """
    ends, alive = os.pipe()  # to see whether the parent is there: getppid() is 0 across namespaces
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # none may come before it is awaited
    if first := os.fork():
        signal.sigwait(awaited)
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        os._exit(0)
    os.setsid()  # out of the group of the process outside, which would share signals
    os.close(alive)
    end_with(lambda: bool(select.select([ends], [], [], 0)[0]))
    os.close(ends)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if second := os.fork():
        while os.wait()[0] != second:  # orphans come to the first process
            pass
        os._exit(0)


def drop_privileges() -> None:
    """Give up all capabilities for good; OSError if that fails.

    No file that is run brings them back. A user namespace of the program's own would, but only over
    what is made in it: mounts that it inherits keep their flags and stay where they are.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(CAPABILITIES):  # refused where there is none to give up, or no such
        libc.prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits of each
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "Capabilities cannot be dropped")


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
    """An audit hook that lets a program compute, import, read, and write inside `folder`.

    To replace names of this module, of builtins or of os.path does not change what it refuses.
    Python has no walls, though: replacing what os.path is made of does, and so does C code.
    """
    refused, harmless, within, writing = REFUSED, HARMLESS, INSIDE, WRITING
    is_a, integer, refusal = isinstance, int, PermissionError
    decode, resolve, common = os.fsdecode, os.path.realpath, os.path.commonpath

    def inside(path: Any) -> bool:
        if is_a(path, integer):
            return True  # opened before
        return common((resolve(decode(path)), folder)) == folder

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2]
            allowed = not (is_a(flags, integer) and flags & writing) or inside(args[0])
        elif event in within:
            allowed = inside(args[0])
        else:
            allowed = event in harmless or not event.startswith(refused)
        if not allowed:
            raise refusal(f"{event} is refused here")

    return hook


if __name__ == "__main__":
    main()
