"""The command line of build_engine.py.

    python build_engine.py                        the engines that the bundle's defaults need
    python build_engine.py --graph full-sample    those of the graphs that are named

What is built stands in manifest.json under `engines`: for each graph the shapes of its inputs, one
optimization profile a range of canvas lengths. An engine is good for one version of the runtime,
for the GPUs that it was built for and for the graph that it was made of; all of that is written to
engines/engines.json beside it. Engines that the bundle came with stand in its manifest instead.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .build_error import EngineError
from .build_network import Effort
from .build_plans import Engines, build_engines, choose, elsewhere, gpus, in_bounds, read_engines
from .build_plugins import BUILT, PROGRAM, SOURCES, compiler
from .rtx_link import run_again
from .this_gpu import Gpu, this_gpu
from .trtexec import trtexec

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}  # by runtime
RTX = "tensorrt-rtx"  # engines are built ahead of time, without a GPU
HIGHEST_LEVEL = 5  # of the builder
INTERRUPTED = 128 + signal.SIGINT  # exit code, as of a process that the signal ended


def main(bundle: Path, arguments: Sequence[str]) -> int:
    """Build engines of a bundle, by default that in the folder `bundle`; its exit code."""
    options = _parser(bundle).parse_args(arguments)
    try:
        engines = read_engines(options.bundle)
        if options.trtexec:
            print(*by_hand(options.bundle, engines, options.graph, _effort(options)), sep="\n")
            return 0
        return _build(options, engines)
    except EngineError as error:
        print(f"error: {error}", *[f"hint: {error.hint}"] * bool(error.hint), sep="\n",
              file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser(bundle: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build_engine.py", description="Build the engines of a bundle."
    )
    add = parser.add_argument
    add("bundle", nargs="?", type=Path, default=bundle, help="default: the folder of this program")
    add("--graph", action="append", help="of which, may be repeated; default: as decoding needs")
    add("--force", action="store_true", help="build again what is there")
    add("--level", type=int, choices=range(HIGHEST_LEVEL + 1),
        help="how long the builder tries, from 0 to 5; default: 3")  # fmt: skip
    add("--workspace-mib", type=int, metavar="N", help="memory that a layer may take for itself; "
        "default: all of the GPU's, half of what is left where the CPU shares it")  # fmt: skip
    add("--trtexec", action="store_true", help="build nothing, print the commands that would")
    return parser


def _effort(options: argparse.Namespace) -> Effort:
    return Effort(options.level, options.workspace_mib)


def _build(options: argparse.Namespace, engines: Engines) -> int:
    choose(engines["plans"], options.graph)  # a name that is wrong is said before all else
    gpu = None if engines["runtime"] == RTX else gpu_at_hand(engines)
    trt = import_tensorrt(engines["runtime"])
    if engines["runtime"] == RTX and engines.get("plugins") is not None:
        code = run_again()
        if code is not None:
            return code
    with _ends_at_once():
        build_engines(
            options.bundle, trt, options.graph, lambda record: print(record["path"], flush=True),
            gpu, _effort(options), options.force,
        )  # fmt: skip
    return 0


@contextmanager
def _ends_at_once() -> Iterator[None]:
    """Ctrl-C ends the process: TensorRT comes back to Python after minutes, which heeds it only
    then. Files appear whole, so nothing has to be mended.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def gpu_at_hand(engines: Engines) -> Gpu:
    """The GPU of this machine. Raises EngineError where engines of the bundle do not run on it."""
    try:
        gpu = this_gpu()
    except EngineError as error:
        raise EngineError(str(error), elsewhere(engines)) from None
    gpus(engines, gpu)
    return gpu


def import_tensorrt(runtime: str) -> Any:
    """The Python module of a runtime. Raises EngineError where it is missing."""
    name = MODULES[runtime]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(
            f"the module {name} cannot be imported: {error}", install(runtime)
        ) from None


def install(runtime: str) -> str:
    """What installs the Python module of a runtime."""
    if runtime == RTX:
        return "No GPU is needed: pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"
    if Path("/etc/nv_tegra_release").is_file():  # a Jetson
        version = ".".join(platform.python_version_tuple()[:2])
        return (
            "sudo apt-get install python3-libnvinfer, and use the system's python3 or an "
            f"environment made with --system-site-packages (this is Python {version})"
        )
    return "pip install tensorrt, in the version of the bundle's target: `dqexport targets`"


def by_hand(
    folder: Path, engines: Engines, graphs: Sequence[str] | None, effort: Effort
) -> list[str]:
    """Commands for the shell that build the same: the plugins where they are missing, engines.

    Needs neither GPU nor TensorRT: what is not known of them is taken from the manifest.
    """
    plans, runtime = choose(engines["plans"], graphs), engines["runtime"]
    try:
        version = import_tensorrt(runtime).__version__
    except EngineError:
        version = None
    gpu = None if runtime == RTX else Gpu("", _sm(engines), shares_memory=False)
    bounds, sm = in_bounds(folder, gpu, effort), gpus(engines, gpu)
    lines, library = [], None
    if engines.get("plugins") is not None:
        library = (
            folder / SOURCES / BUILT / compiler(folder, engines["plugins"]).library_name(sm[0])
        )
        if not library.is_file():
            program = folder / SOURCES / PROGRAM
            lines.append(shlex.join(["python", str(program), "--sm", str(sm[0])]))
    ahead = [] if gpu else sm
    return lines + [trtexec(folder, p, runtime, ahead, library, bounds, version) for p in plans]


def _sm(engines: Engines) -> int:
    """That of the GPU at hand, or the first that the bundle is made for."""
    try:
        return gpu_at_hand(engines).sm
    except EngineError:
        return int(engines["sm"][0])
