"""Builds the operators' library with the C++ compiler of this machine.

The library needs no headers but the compiler's own, and no ONNX Runtime. Each kind of machine has a
file of kernels compiled with flags of its own; which one runs is chosen when the library is loaded
(`linear_w4a8/choose.cc`).
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent
BUILT = ROOT / "built"
SOURCES = (
    "linear_w4a8/pack.cc", "linear_w4a8/choose.cc", "linear_w4a8/kernel_portable.cc",
    "library/packed.cc", "library/ops.cc",
)  # fmt: skip
AVX2 = ("-mavx2", "-mfma")
KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "linear_w4a8/kernel_avx512.cc": (
            "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma",
            "-mprefer-vector-width=512",
        ),
        "linear_w4a8/kernel_avxvnni.cc": (*AVX2, "-mavxvnni"),
        "linear_w4a8/kernel_avx2.cc": AVX2,
    },
    "aarch64": {
        "linear_w4a8/kernel_i8mm.cc": ("-march=armv8.6-a+i8mm+dotprod",),
        "linear_w4a8/kernel_neon.cc": ("-march=armv8.2-a+dotprod",),
    },
}  # fmt: skip
# GCC 12 takes the undefined lanes of its own intrinsics for uninitialized variables
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-uninitialized",
         "-Wno-maybe-uninitialized", "-fno-math-errno", "-ffp-contract=off")  # fmt: skip
RELEASE = ("-O3",)


class BuildError(Exception):
    """The compiler is missing or failed; the text is what it said."""


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, or the first of g++, clang++ and c++ that is there."""
    named = os.environ.get("CXX")
    if named:
        return named if shutil.which(shlex.split(named)[0]) else None
    return next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)


def library_name(machine: str | None = None) -> str:
    """File name of the library for a kind of machine, as `platform.machine()` says it."""
    return f"libdqx-{machine or platform.machine()}.so"


def source_files() -> list[Path]:
    """All files that the library is built from, this one included, relative to `ort_ops`."""
    folders = (ROOT / "linear_w4a8", ROOT / "library")
    found = [
        path for folder in folders for path in folder.iterdir() if path.suffix in (".h", ".cc")
    ]
    return sorted(path.relative_to(ROOT) for path in [*found, Path(__file__)])


def build_library(
    into: Path,
    machine: str | None = None,
    flags: Sequence[str] = RELEASE,
    cxx: str | None = None,
    root: Path = ROOT,
) -> Path:
    """Compile and link the library of `machine` (this one) into the folder `into`; its path.

    The file appears whole or not at all. Raises BuildError.
    """
    machine = machine or platform.machine()
    cxx = cxx or compiler()
    if cxx is None:
        raise BuildError("no C++ compiler: neither $CXX nor g++, clang++ or c++")
    command = [*shlex.split(cxx), *FLAGS, *flags, f"-I{root}"]
    units: dict[str, tuple[str, ...]] = dict.fromkeys(SOURCES, ())
    units.update(KERNELS.get(machine, {}))
    into.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=into) as folder:
        objects = [Path(folder) / f"{number}.o" for number in range(len(units))]
        compile_each = [
            [*command, *own, "-c", str(root / source), "-o", str(target)]
            for (source, own), target in zip(units.items(), objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_call, compile_each))
        made = Path(folder) / library_name(machine)
        # no symbol of the C++ library but what is there anyway: bundles run beside any other code
        _call([*command, "-shared", *map(str, objects), "-o", str(made), "-Wl,--as-needed"])
        return made.replace(into / made.name)


def host_library(into: Path) -> Path:
    """The library for this machine in the folder `into`: a copy of the prebuilt one, or built."""
    kept = _prebuilt()
    if not kept.is_file():
        return build_library(into)
    into.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(kept, into / kept.name))


def prebuild() -> Path:
    """Build the library beside the sources, once for each state of them; its path."""
    kept = _prebuilt()
    return kept if kept.is_file() else build_library(kept.parent)


def _prebuilt() -> Path:
    return BUILT / sources_digest() / library_name()


def sources_digest() -> str:
    """What tells one state of the sources from another."""
    digest = hashlib.sha256()
    for name in source_files():
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def main(arguments: Sequence[str]) -> int:
    """`build.py [FOLDER]`: the library into FOLDER, or kept beside the sources."""
    try:
        print(build_library(Path(arguments[0])) if arguments else prebuild())
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
