"""What this machine has for building and running bundles, and what to install where it lacks."""

import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import targets
from exporter import doctor_gpu, machine, machine_jetson
from exporter.device.build_command import MODULES
from exporter.doctor_target import CUDA_MODULE, Here, install_ort, target
from exporter.finding import Finding, package
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
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings",),
    "cuda": ("cuda-python", "cuda-bindings"),
}


def examine(folder: Path = Path()) -> list[Finding]:
    """Every finding, in reading order; disk space is that of `folder`. Never raises."""
    graphics, board = doctor_gpu.gpus(), machine_jetson.jetson()
    providers = onnxruntime_providers()
    found = [
        python_version(),
        *[package(name, among, optional=False) for name, among in REQUIRED.items()],
        *[package(name, among, optional=True) for name, among in OPTIONAL.items()],
        Finding("providers", bool(providers), ", ".join(providers) or "none", install_ort()),
        processor(),
        memory(machine.parse_memory(machine.read_text(Path("/proc/meminfo")))),
        disk(folder),
        *doctor_gpu.findings(graphics, board),
        cpp_compiler(),
        operators(),
    ]
    here = summarized(found, providers, graphics, board is not None)
    return [*found, *[target(targets.load(name), here) for name in targets.names()]]


def summarized(
    findings: Sequence[Finding],
    providers: Sequence[str],
    graphics: Sequence[machine.Gpu],
    jetson: bool,
) -> Here:
    """What of the findings decides which targets this machine serves."""
    seen = {finding.name: finding.seen for finding in findings if finding.ok}
    return Here(
        providers=tuple(providers),
        gpus=tuple(graphics),
        modules=frozenset(name for name in (*MODULES.values(), CUDA_MODULE) if name in seen),
        tensorrt=seen.get("tensorrt"),
        nvcc="nvcc" in seen,
        headers="tensorrt headers" in seen,
        compiler="c++ compiler" in seen,
        jetson=jetson,
    )


def python_version() -> Finding:
    seen = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), seen, "Use Python 3.11 or later")


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


def cpp_compiler() -> Finding:
    seen = machine.compiler()
    hint = "Needed to compile the CPU kernels; install g++ or clang++, or set CXX"
    return Finding("c++ compiler", bool(seen), seen or "not found", hint, optional=True)


def operators() -> Finding:
    """The CPU kernels of our own operators."""
    built = prebuilt_library().is_file()
    hint = "dqexport ops build saves every build a quarter of a minute"
    return Finding("operators", built, kernel_here(), hint, optional=True)
