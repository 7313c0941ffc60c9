"""What this machine has for building and running bundles, and what to install where it lacks."""

import importlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import targets
from exporter import machine
from exporter.engines import requirements
from exporter.ops_command import kernel_here
from ort_ops.build import prebuilt_library

GIB = 2**30
# import name → distributions that provide it, the first is the one to suggest
REQUIRED = {
    "torch": ("torch",),
    "onnx": ("onnx",),
    "onnx_ir": ("onnx_ir",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tokenizers": ("tokenizers",),
}
OPTIONAL = {
    "safetensors": ("safetensors",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings",),
}
RUNTIME_MODULE = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    name: str
    ok: bool
    seen: str  # what was found, in words
    hint: str = ""  # what to do, where something is to be done
    optional: bool = False  # needed by some targets or tools only: not ok is no fault


def examine(folder: Path = Path()) -> list[Finding]:
    """Every finding, in reading order; disk space is that of `folder`. Never raises."""
    graphics = machine.gpus()
    providers = onnxruntime_providers()
    return [
        python_version(),
        *[package(name, among, optional=False) for name, among in REQUIRED.items()],
        *[package(name, among, optional=True) for name, among in OPTIONAL.items()],
        Finding("providers", bool(providers), ", ".join(providers) or "none", _install_ort()),
        processor(),
        memory(machine.parse_memory(machine.read_text(Path("/proc/meminfo")))),
        disk(folder),
        gpu(graphics),
        cuda_libraries(),
        nvcc(),
        cpp_compiler(),
        operators(),
        jetson(),
        *[target(targets.load(name), providers, graphics) for name in targets.names()],
    ]


def python_version() -> Finding:
    seen = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), seen, "Use Python 3.11 or later")


def package(name: str, distributions: Sequence[str], optional: bool) -> Finding:
    """Whether the module `name` is installed and can be imported, and its version."""
    hint = f"pip install {distributions[0]}"
    if not is_installed(name):
        return Finding(name, False, "not installed", hint, optional)
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        seen = f"{_version(distributions)}, but its import fails: {reason}"
        return Finding(name, False, seen, f"pip install --force-reinstall {distributions[0]}")
    return Finding(name, True, _version(distributions), optional=optional)


def is_installed(name: str) -> bool:
    """Whether the top-level module `name` can be found, without importing it."""
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: it is blocked in sys.modules
        return False


def onnxruntime_providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime; none where it cannot be imported."""
    try:
        runtime = importlib.import_module("onnxruntime")
        return list(runtime.get_available_providers())
    except (ImportError, OSError, RuntimeError, AttributeError):
        return []


def processor() -> Finding:
    features = machine.cpu_features(machine.read_text(Path("/proc/cpuinfo")))
    seen = f"{machine.cpu_cores()} cores, {', '.join(features) or 'no known integer extensions'}"
    return Finding("processor", bool(features), seen, "int8 matmuls will be slow here", True)


def memory(found: machine.Memory | None) -> Finding:
    if found is None:
        return Finding("memory", False, "unknown", "/proc/meminfo does not tell", optional=True)
    seen = f"{found.available / GIB:.1f} GiB available of {found.total / GIB:.1f} GiB"
    hint = "A model of 8 billion parameters builds within 16 GiB; close other programs"
    return Finding("memory", found.available >= 2 * GIB, seen, hint)


def disk(folder: Path) -> Finding:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        seen = f"`{folder}`: {error.strerror}"
        return Finding("disk", False, seen, "Name a folder that exists")
    hint = "A 4-bit bundle takes about 0.6 bytes a parameter, twice that while it is built"
    return Finding("disk", free >= GIB, f"{free / GIB:.1f} GiB free", hint)


def gpu(found: Sequence[machine.Gpu]) -> Finding:
    hint = "Needed to run the GPU targets here, and for `--device cuda`; install NVIDIA's driver"
    described = [
        f"{one.name}, SM {one.sm}, driver {one.driver}, "
        + ("shared memory" if one.memory_mib is None else f"{one.memory_mib / 1024:.1f} GiB")
        for one in found
    ]
    return Finding("gpu", bool(found), "; ".join(described) or "none", hint, optional=True)


def cuda_libraries() -> Finding:
    """The libraries that ONNX Runtime's CUDA provider loads, of CUDA 13 or 12."""
    wanted = {"cuda": [1], "cudart": [13, 12], "cublasLt": [13, 12], "cudnn": [9]}
    found = {stem: machine.shared_library(stem, majors) for stem, majors in wanted.items()}
    missing = [f"lib{stem}" for stem, place in found.items() if not place]
    seen = f"missing {', '.join(missing)}" if missing else ", ".join(found.values())
    hint = "`pip install onnxruntime-gpu[cuda,cudnn]` brings all but libcuda, the driver's"
    return Finding("cuda libraries", not missing, seen, hint, optional=True)


def nvcc() -> Finding:
    version = machine.parse_nvcc(machine.output_of(["nvcc", "--version"]))
    hint = "Needed to compile the CUDA kernels; install the CUDA toolkit"
    return Finding("nvcc", version is not None, version or "not found", hint, optional=True)


def cpp_compiler() -> Finding:
    seen = machine.compiler()
    hint = "Needed to compile the CPU kernels; install g++ or clang++, or set CXX"
    return Finding("c++ compiler", bool(seen), seen or "not found", hint, optional=True)


def operators() -> Finding:
    """The CPU kernels of our own operators."""
    built = prebuilt_library().is_file()
    hint = "dqexport ops build saves every build a quarter of a minute"
    return Finding("operators", built, kernel_here(), hint, optional=True)


def jetson() -> Finding:
    release = machine.parse_l4t(machine.read_text(Path("/etc/nv_tegra_release")))
    seen = f"L4T {release}" if release else "not a Jetson"
    return Finding("jetson", release is not None, seen, optional=True)


def target(
    one: targets.Target, providers: Sequence[str], graphics: Sequence[machine.Gpu]
) -> Finding:
    """Whether bundles for `one` can be built, and run here."""
    obstacle = why_not_here(one, providers, graphics)
    builder = one.engine_built != "ahead-of-time" or is_installed(RUNTIME_MODULE[one.runtime])
    here = "can build" if builder else "cannot build here"
    builds = here if one.supported else "cannot build yet"
    runs = f"cannot run here: {obstacle}" if obstacle else "can run here"
    hint = _how_to_run(one, graphics) if obstacle else ""
    if not builder:
        hint = f"pip install {' '.join(requirements())} builds its engines, without a GPU"
    if not one.supported:
        hint = "Build for cpu or cuda instead; `dqexport targets` tells why"
    return Finding(f"target {one.name}", one.supported, f"{builds}, {runs}", hint, optional=True)


def why_not_here(
    one: targets.Target, providers: Sequence[str], graphics: Sequence[machine.Gpu]
) -> str:
    """What keeps bundles for `one` from running on this machine; empty when nothing does."""
    module = RUNTIME_MODULE.get(one.runtime)
    if module and not is_installed(module):
        return f"the module `{module}` is not installed"
    missing = [name for name in one.providers if name not in providers]
    if missing:
        return f"ONNX Runtime has no {missing[0]}"
    if one.sm and not any(card.sm in one.sm for card in graphics):
        here = ", ".join(f"SM {card.sm}" for card in graphics) or "no GPU"
        return f"it needs SM {'/'.join(map(str, one.sm))}, here is {here}"
    return ""


def _how_to_run(one: targets.Target, graphics: Sequence[machine.Gpu]) -> str:
    here = one.sm is None or any(card.sm in one.sm for card in graphics)
    return _install_ort() if here else "Build it here and copy it to a machine with such a GPU"


def _install_ort() -> str:
    return "pip install onnxruntime, or onnxruntime-gpu[cuda,cudnn] for NVIDIA GPUs"


def _version(distributions: Sequence[str]) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "version unknown"
