"""The kernels of an operator, compiled with the harness that checks them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ort_ops.build import compile_command, compile_units, library_units

TESTS = Path(__file__).parent / "ort_ops"
CHOICE = "linear_w4a8/choose.cc"  # which kinds of machines this is; of use to all operators


def compile_harness(
    into: Path,
    machine: str,
    flags: Sequence[str],
    cxx: str | None = None,
    folder: str = "linear_w4a8",
) -> Path:
    """The program `harness SEED FORMS` in `into`; objects of the operator's kernels lie beside it.

    `folder`: the operator's, below `ort_ops` and below its tests. No warning is let through.
    """
    command = compile_command((*flags, "-Werror"), cxx)
    units = library_units(machine)
    used = {n: own for n, own in units.items() if n == CHOICE or n.startswith(f"{folder}/")}
    objects = compile_units(command, used, into)
    program = into / "harness"
    harness = TESTS / folder / "harness.cc"
    subprocess.run([*command, harness, *objects, "-o", program], check=True)
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
