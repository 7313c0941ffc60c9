"""`dqexport ops`: the operators of our own on this machine."""

import platform
import subprocess
import sys
from ctypes import CDLL, c_char_p
from pathlib import Path
from typing import Annotated

import typer

from exporter.errors import UserError
from exporter.runtime.operators import BUILT, FOLDER
from ort_ops.build import ROOT, BuildError, build_library, compiler, prebuilt_library

app = typer.Typer(no_args_is_help=True, help="Operators of our own: build them, see what runs.")


@app.command("build")
def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Folder of a bundle; left out: for the builds of this installation."),
    ] = None,
) -> None:
    """Compile the operators for this machine, and print where they are."""
    try:
        print(_build(bundle))
    except BuildError as error:
        hint = "Install a C++ compiler, such as g++, or name one with CXX"
        raise UserError(str(error), "" if compiler() else hint) from error


def _build(bundle: Path | None) -> Path:
    if bundle is None:
        return build_library(prebuilt_library().parent)
    program = bundle / FOLDER / ROOT.name / "build.py"
    if not program.is_file():
        raise UserError(
            f"`{bundle}` has no operators of our own", "Give a bundle that was built with some"
        )
    # its sources, and the program that knows them, may be of another version
    command = [sys.executable, "-B", str(program), str(bundle / FOLDER / BUILT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(done.stderr.strip())
    return Path(done.stdout.strip())


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
