"""`dqexport ops`: the operators of our own on this machine."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from ctypes import CDLL, c_char_p
from pathlib import Path
from typing import Annotated

import typer

from exporter.errors import UserError
from exporter.runtime.operators import BUILT, FOLDER, compute_capability
from ort_ops.build import ROOT, BuildError, build_library, compiler, prebuilt_library
from ort_ops.build_cuda import CudaBuildError, prebuild

app = typer.Typer(no_args_is_help=True, help="Operators of our own: build them, see what runs.")


@app.command("build")
def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Folder of a bundle; left out: for the builds of this installation."),
    ] = None,
    cuda: Annotated[
        bool, typer.Option(help="For ONNX Runtime's CUDA provider, by nvcc, instead of the CPU.")
    ] = False,
    sm: Annotated[
        int | None,
        typer.Option(help="Compute capability of the GPU, by ten; left out: of the one here."),
    ] = None,
) -> None:
    """Compile the operators for this machine, and print where they are."""
    if sm is not None and not cuda:
        raise UserError("--sm is for GPUs", "Give --cuda, too")
    try:
        print(_build_cuda(bundle, sm) if cuda else _build(bundle))
    except BuildError as error:
        hint = "Install a C++ compiler, such as g++, or name one with CXX"
        raise UserError(str(error), "" if compiler() else hint) from error
    except CudaBuildError as error:
        reason, *hints = str(error).splitlines()
        raise UserError(reason, "; ".join(hints)) from error


def _build(bundle: Path | None) -> Path:
    if bundle is None:
        return build_library(prebuilt_library().parent)
    done = _call(bundle, "build.py", [])
    if done.returncode:
        raise BuildError(done.stderr.strip())
    return Path(done.stdout.strip())


def _build_cuda(bundle: Path | None, sm: int | None) -> Path:
    sm = compute_capability() if sm is None else sm
    if sm is None:
        raise UserError("There is no NVIDIA GPU here", "Name its kind: --sm 87 is Orin")
    if bundle is None:
        return prebuild(sm)
    done = _call(bundle, "build_cuda.py", ["--sm", str(sm), "--into"])
    if done.returncode:
        raise CudaBuildError(done.stderr.strip().removeprefix("error: "))
    return Path(done.stdout.strip())


def _call(bundle: Path, name: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a bundle's own program: its sources may be of another version."""
    program = bundle / FOLDER / ROOT.name / name
    if not program.is_file():
        raise UserError(
            f"`{bundle}` has no operators of our own for that",
            "Give a bundle that was built with some",
        )
    command = [sys.executable, "-B", str(program), *options, str(bundle / FOLDER / BUILT)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@app.command("show")
def show() -> None:
    """Say which kernels run on this machine."""
    print(kernel_here())


def kernel_here() -> str:
    """Machine and kernel; or what is missing."""
    library = prebuilt_library()
    if not library.is_file():
        return f"{platform.machine()}: not built beforehand, each build compiles them"
    name = CDLL(str(library)).dqx_kernel_name
    name.restype = c_char_p
    kernel: bytes | None = name()
    if kernel is None:
        raise UserError("DQX_KERNEL names no kernel that runs here", "Unset it")
    return f"{platform.machine()}: {kernel.decode()}"
