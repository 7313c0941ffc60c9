"""What a target lacks on this machine: to build its bundles, its engines, and to run them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from exporter.device.build_command import MODULES
from exporter.doctor_gpu import headers_command
from exporter.engines import requirements
from exporter.finding import Finding
from exporter.machine import Gpu
from targets import Target

CUDA_MODULE = "cuda"  # of cuda-python, by which engines get their memory
PACKAGES_OF_NVCC = (
    "pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl"
)
# what is done of graphs with operators of our own, such as those of w4a8, where these are missing
NO_PLUGINS = "none with plugins"
STANDARD = "standard operators in the place of ours, slower"


@dataclass(frozen=True)
class Here:
    """What of this machine decides which targets it serves."""

    providers: tuple[str, ...]  # of ONNX Runtime
    gpus: tuple[Gpu, ...]
    modules: frozenset[str]  # importable ones
    tensorrt: str | None  # version of the module `tensorrt`
    nvcc: bool
    headers: bool  # of TensorRT
    compiler: bool  # of C++
    jetson: bool


@dataclass(frozen=True)
class Lack:
    """Something that is missing, and what to do about it."""

    what: str
    hint: str
    without: str = ""  # what is done without it, where it is not needed


def target(one: Target, here: Here) -> Finding:
    """Whether bundles and engines for `one` can be built, and run here; ok: all of it."""
    build, engines, run = to_build(one, here), to_build_engines(one, here), to_run(one, here)
    parts = [_told("build bundles", build)]
    if one.engine_built == "on-device" and engines == run:
        parts.append(_told("build their engines and run them here", run))
    elif one.engine_built == "on-device":
        parts += [_told("build their engines here", engines), _told("run them here", run)]
    else:
        parts.append(_told("run them here", run))
    hints = dict.fromkeys(lack.hint for lack in [*build, *engines, *run])
    complete = not (build or engines or run)
    return Finding(f"target {one.name}", complete, "; ".join(parts), "; ".join(hints), True)


def to_build(one: Target, here: Here) -> list[Lack]:
    """What is missing to build a bundle, beside the packages that every build needs."""
    if one.engine_built != "ahead-of-time":
        return []
    return [*_builder(one, here), *_plugin_library(one, here, cuda=False)]


def to_build_engines(one: Target, here: Here) -> list[Lack]:
    """What is missing to build the engines of a bundle here."""
    if one.engine_built == "on-device":
        on_gpu = [*_builder(one, here), *_plugin_library(one, here, cuda=True)]
        return _gpu(one, here) or on_gpu
    return to_build(one, here)


def to_run(one: Target, here: Here) -> list[Lack]:
    """What is missing to run a bundle here; a GPU of another kind is all that counts then."""
    missing = [name for name in one.providers if name not in here.providers]
    lacks = [Lack(f"ONNX Runtime has no {missing[0]}", install_ort())] if missing else []
    if one.runtime in MODULES:
        lacks += _builder(one, here)  # the module that builds engines runs them too
        if CUDA_MODULE not in here.modules:
            lacks.append(
                Lack("cuda-python is not installed", f'pip install "cuda-python=={_major(one)}.*"')
            )
    elif one.sm is not None and one.operators:
        needed = [_cpp(here), _nvcc(one, here)]
        lacks += [replace(lack, without=STANDARD) for lack in needed if lack]
    return _gpu(one, here) or lacks


def install_ort() -> str:
    """What installs ONNX Runtime."""
    return "pip install onnxruntime, or onnxruntime-gpu[cuda,cudnn] for NVIDIA GPUs"


def serves(version: str, wanted: str) -> bool:
    """Whether a TensorRT `version` is `wanted` or a later one of that major; unless it is no
    version at all, which is not refused.
    """
    try:
        has, needs = (tuple(map(int, text.split("."))) for text in (version, wanted))
    except ValueError:
        return True
    return has[0] == needs[0] and has >= needs


def _gpu(one: Target, here: Here) -> list[Lack]:
    if one.sm is None or any(card.sm in one.sm for card in here.gpus):
        return []
    seen = ", ".join(f"SM {card.sm}" for card in here.gpus) or "no GPU"
    there = "Build its bundle here and copy it to a machine with such a GPU"
    if one.engine_built == "on-device":
        there += "; there `python BUNDLE/build_engine.py` builds the engines"
    return [Lack(f"it needs SM {'/'.join(map(str, one.sm))}, here is {seen}", there)]


def _builder(one: Target, here: Here) -> list[Lack]:
    """The Python module that builds engines, in a version that the target is described for."""
    module = MODULES[one.runtime]
    if module not in here.modules:
        return [Lack(f"the module `{module}` is not installed", _install_builder(one, here))]
    if one.runtime != "tensorrt" or here.tensorrt is None or one.tensorrt is None:
        return []
    if serves(here.tensorrt, one.tensorrt):
        return []
    major = one.tensorrt.partition(".")[0]
    what = f"it needs TensorRT {one.tensorrt} or later {major}.x, here is {here.tensorrt}"
    return [Lack(what, "`dqexport targets` lists targets for other versions")]


def _install_builder(one: Target, here: Here) -> str:
    if one.runtime == "tensorrt-rtx":
        return f"pip install {' '.join(requirements())} (no GPU needed)"
    if here.jetson:
        return (
            "sudo apt-get install tensorrt python3-libnvinfer-dev; a virtual environment sees it "
            "with --system-site-packages"
        )
    least = one.tensorrt or ""
    major = int(least.partition(".")[0] or 0)
    return f'pip install "tensorrt-cu{_major(one)}>={least},<{major + 1}"'


def _plugin_library(one: Target, here: Here, cuda: bool) -> list[Lack]:
    """What compiles our operators as plugins: for a GPU, or for a builder without one."""
    if not (one.plugins and one.operators):
        return []
    headers = Lack("TensorRT's headers are not installed", headers_command(here.jetson))
    needed = [
        _cpp(here), None if here.headers else headers, _nvcc(one, here) if cuda else None,
    ]  # fmt: skip
    return [replace(lack, without=NO_PLUGINS) for lack in needed if lack]


def _cpp(here: Here) -> Lack | None:
    return None if here.compiler else Lack("g++ is not installed", "sudo apt-get install g++")


def _nvcc(one: Target, here: Here) -> Lack | None:
    toolkit = f"sudo apt-get install cuda-toolkit-{(one.cuda or '').replace('.', '-')}"
    hint = toolkit if here.jetson else PACKAGES_OF_NVCC
    return None if here.nvcc else Lack("nvcc is not installed", hint)


def _told(what: str, lacks: Sequence[Lack]) -> str:
    """That this machine can do it, or can but without something, or cannot; with the reasons."""
    reasons = ", ".join(lack.what for lack in lacks)
    if any(not lack.without for lack in lacks):
        return f"cannot {what}: {reasons}"
    return f"can {what}" + (f", but {lacks[0].without}: {reasons}" if lacks else "")


def _major(one: Target) -> str:
    """Of CUDA."""
    return (one.cuda or "").partition(".")[0]
