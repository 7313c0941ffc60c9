"""Raw facts of the machine at hand: processor, memory, GPUs, compiler. Nothing is judged here."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

# What the fast integer kernels look for, as /proc/cpuinfo spells it.
CPU_FEATURES = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "i8mm": "NEON int8 matmul",
}
GPU_QUERY = "name,driver_version,memory.total,compute_cap"
SECONDS_TO_ANSWER = 20.0  # a driver that starts up may take several


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it."""

    name: str
    driver: str
    memory_mib: int | None  # None on boards whose GPU has no memory of its own
    sm: int  # compute capability × 10


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes."""

    total: int
    available: int


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_features(cpuinfo: str) -> list[str]:
    """Which of CPU_FEATURES the text of /proc/cpuinfo lists (`flags` on x86, `Features` on Arm)."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    listed = line[1].split() if line else []
    return [name for flag, name in CPU_FEATURES.items() if flag in listed]


def parse_memory(meminfo: str) -> Memory | None:
    """The memory that the text of /proc/meminfo states; None when it states none."""
    kib = dict(re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB$", meminfo, re.MULTILINE))
    if "MemTotal" not in kib:
        return None
    total = int(kib["MemTotal"]) * 1024
    return Memory(total, int(kib.get("MemAvailable", 0)) * 1024)


def parse_gpus(table: str) -> list[Gpu]:
    """GPUs of nvidia-smi's csv lines for GPU_QUERY, without header and units."""
    gpus = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 4 and re.fullmatch(r"\d+\.\d", cells[3]):
            memory = int(cells[2]) if cells[2].isdecimal() else None
            gpus.append(Gpu(cells[0], cells[1], memory, int(cells[3].replace(".", ""))))
    return gpus


def read_text(path: Path) -> str:
    """A file of the system; empty where there is none or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def output_of(command: Sequence[str]) -> str:
    """What `command` writes to stdout; empty where it is absent, fails or does not answer."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_TO_ANSWER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver lists."""
    return parse_gpus(
        output_of(["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"])
    )


def compiler() -> str:
    """First line of the C++ compiler's version, that of $CXX if it is set; empty without one."""
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    texts = (output_of([name, "--version"]) for name in candidates if name)
    return next((text.splitlines()[0] for text in texts if text), "")


def load_library(name: str) -> ctypes.CDLL | None:
    """The library that the loader finds under a name, if any."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def shared_library(stem: str, majors: Sequence[int]) -> str:
    """Where lib`stem`.so.N is found, by the loader or in NVIDIA's Python packages; else empty."""
    for name in [f"lib{stem}.so.{major}" for major in majors]:
        if load_library(name) is None:
            in_packages = [path for folder in _nvidia_folders() for path in folder.rglob(name)]
            if in_packages:
                return str(in_packages[0])
        else:
            return name
    return ""


def _nvidia_folders() -> list[Path]:
    try:
        spec = util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    places = spec.submodule_search_locations if spec else None
    return [Path(place) for place in places or ()]
