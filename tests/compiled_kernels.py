"""The kernels of quantized linears, compiled with the harness that checks them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ort_ops.build import compile_command, compile_units, library_units

HARNESS = Path(__file__).parent / "ort_ops" / "linear_w4a8" / "harness.cc"


def compile_harness(into: Path, machine: str, flags: Sequence[str], cxx: str | None = None) -> Path:
    """The program `harness SEED FORMS` in the folder `into`; objects of the kernels lie beside it.

    No warning is let through.
    """
    command = compile_command((*flags, "-Werror"), cxx)
    units = library_units(machine)
    linear = {name: own for name, own in units.items() if name.startswith("linear_w4a8/")}
    objects = compile_units(command, linear, into)
    program = into / "harness"
    subprocess.run([*command, HARNESS, *objects, "-o", program], check=True)
    return program


def run_harness(command: Sequence[str | Path], seed: int, forms: int) -> list[str]:
    """Names of the kernels that passed, fastest first."""
    called = [*command, str(seed), str(forms)]
    done = subprocess.run(called, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    # "avx2: 300 forms, 216623 outputs exact": some must have been compared exactly
    assert all(int(line[1]) == forms and int(line[3]) > 0 for line in lines), done.stdout
    return [line[0].removesuffix(":") for line in lines]
