"""Builds the operators for NVIDIA GPUs: of ONNX Runtime's CUDA provider, and C functions.

    python build_cuda.py --sm 87     for GPUs of compute capability 8.7, by nvcc
    python build_cuda.py --host      the same operators of the CPU provider: kernels run on the CPU,
                                     slowly, for tests on machines without a GPU

Needs no headers but those of CUDA, no ONNX Runtime, and nothing of ours outside this folder.
"""

import argparse
import hashlib
import importlib.util
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
PATTERNS = (  # all that the library is made of
    "build_cuda.py", "*.h", "*.cuh", "*/launch.h", "*/paths.h", "*/*.cuh", "*/*.cu",
    "linear_w4a8/tile*.h", "attention/attend.h", "library/abi.h", "library/node.h",
    "cuda_library/*",
)  # fmt: skip
EXPORTS = ("RegisterCustomOps", "launch_*", "size_of_*", "*_workspace")
FLAGS = ("-std=c++17",)
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off")
LEAST_SM = 80  # the first with cp.async and products of bytes on tensor cores as we use them
NO_NVCC = (
    "no nvcc: neither in $CUDA_HOME/bin, /usr/local/cuda/bin nor on the path\n"
    "on Jetson: sudo apt-get install cuda-toolkit-12-6 (JetPack 6), -13-0 (7.0, 7.1), -13-2 (7.2)\n"
    "elsewhere: pip install nvidia-cuda-nvcc nvidia-cuda-cccl"
)
NO_COMPILER = "no C++ compiler: neither $CXX nor g++\non Debian: sudo apt-get install g++"


class CudaBuildError(Exception):
    """What is missing and how to get it, or what the compiler said."""


def source_files() -> list[str]:
    """All files that the library is built from, below this folder, as POSIX paths in order."""
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def sources_digest() -> str:
    """What tells one state of the sources from another."""
    digest = hashlib.sha256()
    for name in source_files():
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def library_name(sm: int | None, machine: str | None = None) -> str:
    """File name of the library for GPUs of `sm` (87: compute capability 8.7); None: of the host.

    `machine`: as `platform.machine()` says it, by default this one.
    """
    return f"libdqx-cuda-{machine or platform.machine()}-{f'sm{sm}' if sm else 'host'}.so"


def prebuilt_library(sm: int | None) -> Path:
    """Where `prebuild` puts the library of these sources."""
    return BUILT / sources_digest() / library_name(sm)


def prebuild(sm: int | None) -> Path:
    """Build the library beside the sources, once for each state of them; its path."""
    kept = prebuilt_library(sm)
    return kept if kept.is_file() else build_library(kept.parent, sm)


def build_library(into: Path, sm: int | None, flags: Sequence[str] = ()) -> Path:
    """Compile the library for GPUs of `sm`, or of the host, into a folder; its path.

    The file appears whole or not at all. `flags`: more for the compiler. Raises CudaBuildError.
    """
    command = [*(host_command() if sm is None else cuda_command(sm)), *flags]
    into.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=into) as place:
        made = Path(place) / library_name(sm)
        objects = _compiled(command, sm is None, Path(place))
        exports = Path(place) / "exports.map"
        exports.write_text("{ global: " + "; ".join(EXPORTS) + "; local: *; };\n")
        script = f"--version-script={exports}"
        only = [f"-Wl,{script}"] if sm is None else ["-Xlinker", script]
        _call([*command, "-shared", *only, *map(str, objects), "-o", str(made)])
        return made.replace(into / made.name)


def host_command() -> list[str]:
    """How a file is compiled for the host. Raises CudaBuildError."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not shutil.which(compiler[0]):
        raise CudaBuildError(NO_COMPILER)
    return [*compiler, *FLAGS, *HOST_FLAGS, "-O1", "-DDQX_ON_CPU", f"-I{ROOT}"]


def cuda_command(sm: int) -> list[str]:
    """How a file is compiled for GPUs of `sm`. Raises CudaBuildError."""
    if sm < LEAST_SM:
        raise CudaBuildError(f"the kernels are for compute capability 8.0 and later, not SM {sm}")
    nvcc = find_nvcc()
    if nvcc is None:
        raise CudaBuildError(NO_NVCC)
    if not shutil.which("g++"):  # nvcc compiles what runs on the host with it
        raise CudaBuildError(NO_COMPILER)
    kind = "90a" if sm == 90 else sm  # with all that this GPU alone has
    target = f"-gencode=arch=compute_{kind},code=sm_{kind}"
    libraries = f"-L{nvcc.resolve().parents[1] / 'lib'}"  # where pip's packages have them
    to_host = f"-Xcompiler={','.join(HOST_FLAGS)}"
    return [str(nvcc), *FLAGS, "-O3", target, to_host, f"-I{ROOT}", libraries]


def find_nvcc() -> Path | None:
    """nvcc of `$CUDA_HOME`, of /usr/local/cuda, on the path, or of NVIDIA's pip package."""
    home, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    package = importlib.util.find_spec("nvidia")
    folders = (package and package.submodule_search_locations) or ()
    places = [
        *([Path(home) / "bin" / "nvcc"] if home else []),
        Path("/usr/local/cuda/bin/nvcc"),
        *([Path(on_path)] if on_path else []),
        *(Path(folder) / "cu13" / "bin" / "nvcc" for folder in folders),
    ]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def _compiled(command: Sequence[str], on_host: bool, into: Path) -> list[Path]:
    """The object files of all sources."""
    units = [name for name in source_files() if name.endswith((".cc", ".cu"))]
    objects = [into / f"{name.replace('/', '-')}.o" for name in units]
    calls = []
    for name, made in zip(units, objects, strict=True):
        language = ["-x", "c++" if on_host else "cu"] if name.endswith(".cu") else []
        calls.append([*command, *language, "-c", str(ROOT / name), "-o", str(made)])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_call, calls))
    return objects


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CudaBuildError(f"{shlex.join(command)}\n{done.stderr.strip() or done.stdout.strip()}")


def main() -> int:
    """The command line; 1 on an error."""
    parser = argparse.ArgumentParser(description="Build the operators for NVIDIA GPUs.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--sm", type=int, metavar="87", help="compute capability of the GPU, by ten")
    which.add_argument("--host", action="store_true", help="for tests: kernels run on the CPU")
    parser.add_argument("--into", type=Path, help="default: kept beside the sources")
    options = parser.parse_args()
    try:
        made = build_library(options.into, options.sm) if options.into else prebuild(options.sm)
    except CudaBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
