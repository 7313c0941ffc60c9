"""Builds the operators as a plugin library of TensorRT.

    python build.py --sm 87     for GPUs of compute capability 8.7, by nvcc
    python build.py --host      for parsers and builders on a machine without nvcc: kernels run on
                                the CPU, and an engine holds an operator's name, not its code

Needs TensorRT's headers and the standard library of Python 3.10, nothing else of ours: the folders
`trt_plugins` and `ort_ops` beside each other are enough, in the project as in a bundle.
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

ROOT = Path(__file__).parents[1]
PATTERNS = (  # below the root: all that the library is made of
    "trt_plugins/build.py", "trt_plugins/*/*.h", "trt_plugins/*/*.cc",
    "ort_ops/launch.h", "ort_ops/on_cpu.h", "ort_ops/*.cuh",
    "ort_ops/*/launch.h", "ort_ops/*/paths.h", "ort_ops/*/tile_rule.h", "ort_ops/*/tiles.h",
    "ort_ops/*/*.cuh", "ort_ops/*/*.cu",
)  # fmt: skip
EXPORTS = ("getCreators", "setLoggerFinder")
FLAGS = ("-std=c++17", "-O3")
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-ffp-contract=off")
NO_NVCC = (
    "no nvcc: neither in $CUDA_HOME/bin, /usr/local/cuda/bin nor on the path\n"
    "on Jetson: sudo apt-get install cuda-toolkit-12-6 (JetPack 6), -13-0 (7.0, 7.1), -13-2 (7.2)\n"
    "elsewhere: pip install nvidia-cuda-nvcc nvidia-cuda-cccl"
)
NO_HEADERS = (
    "no NvInferRuntime.h: neither in $TENSORRT_INCLUDE nor below /usr/include\n"
    "on Jetson: sudo apt-get install libnvinfer-headers-dev\n"
    "elsewhere: pip install kernel-lens==2.0.1"
)
NO_COMPILER = "no C++ compiler: neither $CXX nor g++\non Debian: sudo apt-get install g++"


class BuildError(Exception):
    """What is missing and how to get it, or what the compiler said."""


def source_files(root: Path = ROOT) -> list[str]:
    """All files that the library is built from, below `root`, as POSIX paths in order."""
    return sorted(
        path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern)
    )


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of `source_files`: what tells one library from another."""
    digest = hashlib.sha256()
    for name in source_files(root):
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        digest.update(f"{content}  {name}\n".encode())
    return digest.hexdigest()


def library_name(sm: int | None, machine: str | None = None) -> str:
    """File name of the library for GPUs of `sm` (87: compute capability 8.7); None: of the host.

    `machine`: as `platform.machine()` says it, by default this one.
    """
    return f"libdqx-trt-{machine or platform.machine()}-{f'sm{sm}' if sm else 'host'}.so"


def build_library(
    folder: Path, sm: int | None, root: Path = ROOT, flags: Sequence[str] = ()
) -> Path:
    """Compile the library for GPUs of `sm`, or of the host, into `folder`; its path.

    The file appears whole or not at all. `flags`: more for the compiler. Raises BuildError.
    """
    command = [*(host_command(root) if sm is None else cuda_command(root, sm)), *flags]
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as place:
        made = Path(place) / library_name(sm)
        objects = _compiled(command, root, sm is None, Path(place))
        exports = Path(place) / "exports.map"
        exports.write_text("{ global: " + "; ".join(EXPORTS) + "; local: *; };\n")
        script = f"--version-script={exports}"
        only = [f"-Wl,{script}"] if sm is None else ["-Xlinker", script]
        _call([*command, "-shared", *only, *map(str, objects), "-o", str(made)])
        return made.replace(folder / made.name)


def host_command(root: Path = ROOT) -> list[str]:
    """How a file is compiled for the host. Raises BuildError."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not shutil.which(compiler[0]):
        raise BuildError(NO_COMPILER)
    stand_in = ["-isystem", str(root / "trt_plugins" / "host")]  # of CUDA's headers
    return [*compiler, *FLAGS, *HOST_FLAGS, "-DDQX_ON_CPU", *_includes(root), *stand_in]


def cuda_command(root: Path, sm: int) -> list[str]:
    """How a file is compiled for GPUs of `sm`. Raises BuildError."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError(NO_NVCC)
    if not shutil.which("g++"):  # nvcc compiles what runs on the host with it
        raise BuildError(NO_COMPILER)
    kind = "90a" if sm == 90 else sm  # with all that this GPU alone has
    target = f"-gencode=arch=compute_{kind},code=sm_{kind}"
    libraries = [f"-L{nvcc.resolve().parents[1] / 'lib'}"]  # where pip's packages have them
    to_host = f"-Xcompiler={','.join(HOST_FLAGS)}"
    return [str(nvcc), *FLAGS, target, to_host, *_includes(root), *libraries]


def find_nvcc() -> Path | None:
    """nvcc of `$CUDA_HOME`, of /usr/local/cuda, on the path, or of NVIDIA's pip package."""
    home = os.environ.get("CUDA_HOME")
    on_path = shutil.which("nvcc")
    places = [
        *([Path(home) / "bin" / "nvcc"] if home else []),
        Path("/usr/local/cuda/bin/nvcc"),
        *([Path(on_path)] if on_path else []),
        *(place / "cu13" / "bin" / "nvcc" for place in _package_folders("nvidia")),
    ]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def find_headers() -> Path | None:
    """Folder of NvInferRuntime.h: `$TENSORRT_INCLUDE`, of the system, or of pip's kernel-lens."""
    named = os.environ.get("TENSORRT_INCLUDE")
    system = Path("/usr/include")
    places = [
        *([Path(named)] if named else []),
        system / f"{platform.machine()}-linux-gnu",
        system,
        *(place / "include" / "tensorrt" for place in _package_folders("kernel_lens")),
    ]
    return next((place for place in places if (place / "NvInferRuntime.h").is_file()), None)


def _package_folders(package: str) -> list[Path]:
    """Where a package lies, which is not imported."""
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec and spec.submodule_search_locations) or ()]


def _includes(root: Path) -> list[str]:
    headers = find_headers()
    if headers is None:
        raise BuildError(NO_HEADERS)
    return [f"-I{root}", "-isystem", str(headers)]


def _compiled(command: Sequence[str], root: Path, on_host: bool, into: Path) -> list[Path]:
    """The object files of all sources."""
    units = [name for name in source_files(root) if name.endswith((".cc", ".cu"))]
    objects = [into / f"{name.replace('/', '-')}.o" for name in units]
    calls = []
    for name, made in zip(units, objects, strict=True):
        language = ["-x", "c++" if on_host else "cu"] if name.endswith(".cu") else []
        calls.append([*command, *language, "-c", str(root / name), "-o", str(made)])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_call, calls))
    return objects


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr.strip() or done.stdout.strip()}")


def main() -> int:
    """The command line; 1 on an error."""
    parser = argparse.ArgumentParser(description="Build the plugin library of TensorRT.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--sm", type=int, metavar="87", help="compute capability of the GPU, by ten")
    which.add_argument("--host", action="store_true", help="for parsers and builders without nvcc")
    parser.add_argument("--into", type=Path, default=ROOT / "built", help="default: %(default)s")
    options = parser.parse_args()
    try:
        print(build_library(options.into, options.sm))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
