"""What the examination finds of NVIDIA's hardware and software on this machine."""

from collections.abc import Sequence

from exporter import machine, machine_gpu, machine_jetson
from exporter.finding import Finding
from exporter.machine_gpu import Installed

FASTEST = "MAXN"  # what the names of the fastest power modes begin with


def gpus() -> list[machine.Gpu]:
    """Those that the driver lists, or the one of a Jetson's chip."""
    own = machine_jetson.own_gpu()
    return machine.gpus() or ([own] if own else [])


def findings(graphics: Sequence[machine.Gpu], board: machine_jetson.Jetson | None) -> list[Finding]:
    """All of this page, in reading order."""
    return [
        gpu(graphics),
        jetson(board),
        *([power(board)] if board else []),
        cuda_libraries(),
        nvcc(machine_gpu.cuda_toolkit()),
        tensorrt_library(machine_gpu.tensorrt_library(), board is not None),
        tensorrt_headers(machine_gpu.tensorrt_headers(), board is not None),
    ]


def gpu(found: Sequence[machine.Gpu]) -> Finding:
    hint = "Needed to run the GPU targets here, and for `--device cuda`; install NVIDIA's driver"
    described = [
        f"{one.name}, SM {one.sm}, driver {one.driver}, "
        + ("shared memory" if one.memory_mib is None else f"{one.memory_mib / 1024:.1f} GiB")
        for one in found
    ]
    return Finding("gpu", bool(found), "; ".join(described) or "none", hint, optional=True)


def jetson(board: machine_jetson.Jetson | None) -> Finding:
    if board is None:
        return Finding("jetson", False, "not a Jetson", optional=True)
    known = board.jetpack or "unknown"
    seen = f"{board.board or 'unknown board'}, L4T {board.l4t}, JetPack {known}"
    hint = "sudo apt-get install nvidia-jetpack tells, and installs CUDA and TensorRT"
    return Finding("jetson", board.jetpack is not None, seen, hint, optional=True)


def power(board: machine_jetson.Jetson) -> Finding:
    """How fast a Jetson may run: its power mode, and whether its clocks stay where they are."""
    locked = {True: "clocks locked", False: "clocks not locked", None: "clocks unknown"}
    seen = f"{board.power_mode or 'unknown mode'}, {locked[board.clocks_locked]}"
    fast = (board.power_mode or "").startswith(FASTEST) and board.clocks_locked is True
    hint = (
        "Timings hold for this mode; `grep POWER_MODEL /etc/nvpmodel.conf` lists others, "
        "`sudo nvpmodel -m ID` chooses one, `sudo jetson_clocks` locks its clocks"
    )
    return Finding("power mode", fast, seen, hint, optional=True)


def cuda_libraries() -> Finding:
    """The libraries that ONNX Runtime's CUDA provider loads, of CUDA 13 or 12."""
    wanted = {"cuda": [1], "cudart": [13, 12], "cublasLt": [13, 12], "cudnn": [9]}
    found = {stem: machine.shared_library(stem, majors) for stem, majors in wanted.items()}
    missing = [f"lib{stem}" for stem, place in found.items() if not place]
    seen = f"missing {', '.join(missing)}" if missing else ", ".join(found.values())
    hint = "`pip install onnxruntime-gpu[cuda,cudnn]` brings all but libcuda, the driver's"
    return Finding("cuda libraries", not missing, seen, hint, optional=True)


def nvcc(found: Installed | None) -> Finding:
    hint = "Needed to compile TensorRT's plugins for a GPU; install the CUDA toolkit"
    return Finding("nvcc", found is not None, _seen(found), hint, optional=True)


def tensorrt_library(found: Installed | None, on_jetson: bool) -> Finding:
    """The library itself; the Python module that builds and runs engines is a package."""
    debian = "sudo apt-get install tensorrt"
    hint = debian if on_jetson else f"pip install tensorrt brings its own; on Jetson: {debian}"
    return Finding("libnvinfer", found is not None, _seen(found), hint, optional=True)


def tensorrt_headers(found: Installed | None, on_jetson: bool) -> Finding:
    hint = f"Needed to compile TensorRT's plugins: {headers_command(on_jetson)}"
    return Finding("tensorrt headers", found is not None, _seen(found), hint, optional=True)


def headers_command(on_jetson: bool) -> str:
    """What installs TensorRT's headers."""
    return (
        "sudo apt-get install libnvinfer-headers-dev"
        if on_jetson
        else "pip install kernel-lens==2.0.1"
    )


def _seen(found: Installed | None) -> str:
    return f"{found.version or 'version unknown'}, {found.place}" if found else "not found"
