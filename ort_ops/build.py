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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent
BUILT = ROOT / "built"
FOLDERS = ("linear_w4a8", "attention", "library")
SOURCES = (
    "linear_w4a8/pack.cc", "linear_w4a8/choose.cc", "linear_w4a8/kernel_portable.cc",
    "attention/choose.cc", "attention/kernel_portable.cc",
    "library/packed.cc", "library/linear_op.cc", "library/attention_op.cc", "library/register.cc",
)  # fmt: skip
KERNELS = ("linear_w4a8/kernel", "attention/kernel")  # _<kind>.cc for each kind below
AVX2 = ("-mavx2", "-mfma")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma",
          "-mprefer-vector-width=512")  # fmt: skip
# GCC would load all activations of a step before the first product, and spill sums for them
SUMS_IN_REGISTERS = ("-fno-schedule-insns", "-Wno-ignored-optimization-argument")
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"avx512": AVX512, "avxvnni": (*AVX2, "-mavxvnni"), "avx2": AVX2},
    "aarch64": {
        "i8mm": ("-march=armv8.2-a+dotprod+i8mm", *SUMS_IN_REGISTERS),
        "neon": ("-march=armv8.2-a+dotprod", *SUMS_IN_REGISTERS),
    },
}
# GCC 12 takes the undefined lanes of its own intrinsics for uninitialized variables
FLAGS = ("-std=c++17", "-pthread", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
         "-Wno-uninitialized", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized",
         "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")  # fmt: skip
RELEASE = ("-O3",)
EXPORTS = ("RegisterCustomOps", "dqx_kernel_name")


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
    files = [path for folder in FOLDERS for path in (ROOT / folder).iterdir()]
    found = [path for path in files if path.suffix in (".h", ".cc")]
    found = [path for path in found if path.name != "launch.h"]  # of the kernels for GPUs
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
    into.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=into) as folder:
        command = compile_command(flags, cxx, root)
        made = Path(folder) / library_name(machine)
        link_library(
            command, compile_units(command, library_units(machine), Path(folder), root), made
        )
        return made.replace(into / made.name)


def compile_command(flags: Sequence[str], cxx: str | None = None, root: Path = ROOT) -> list[str]:
    """How any file is compiled, whatever the machine. Raises BuildError."""
    cxx = cxx or compiler()
    if cxx is None:
        raise BuildError("no C++ compiler: neither $CXX nor g++, clang++ or c++")
    return [*shlex.split(cxx), *FLAGS, *flags, f"-I{root}"]


def library_units(machine: str) -> dict[str, tuple[str, ...]]:
    """What the library of `machine` is compiled from, and the flags of each file alone."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys(SOURCES, ())
    for kind, own in KINDS.get(machine, {}).items():
        found |= {f"{kernel}_{kind}.cc": own for kernel in KERNELS}
    return found


def compile_units(
    command: Sequence[str], units: Mapping[str, Sequence[str]], into: Path, root: Path = ROOT
) -> list[Path]:
    """The object files of `units`, named after them. Raises BuildError."""
    objects = [into / source.replace("/", "-").replace(".cc", ".o") for source in units]
    compile_each = [
        [*command, *own, "-c", str(root / source), "-o", str(target)]
        for (source, own), target in zip(units.items(), objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_call, compile_each))
    return objects


def link_library(command: Sequence[str], objects: Sequence[Path], made: Path) -> None:
    """Link a library that shows nothing but its two functions: it runs beside any other code.

    Otherwise it would also offer the templates of the C++ library that it uses.
    """
    exports = made.with_suffix(".map")
    exports.write_text("{ global: " + "; ".join(EXPORTS) + "; local: *; };\n")
    options = ["-shared", f"-Wl,--version-script={exports}", "-Wl,--as-needed"]
    _call([*command, *options, *map(str, objects), "-o", str(made)])


def host_library(into: Path) -> Path:
    """The library for this machine in the folder `into`: a copy of the prebuilt one, or built."""
    kept = prebuilt_library()
    if not kept.is_file():
        return build_library(into)
    into.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(kept, into / kept.name))


def prebuild() -> Path:
    """Build the library beside the sources, once for each state of them; its path."""
    kept = prebuilt_library()
    return kept if kept.is_file() else build_library(kept.parent)


def prebuilt_library() -> Path:
    """Where `prebuild` puts the library of these sources."""
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
