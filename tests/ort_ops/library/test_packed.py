"""Equal weights of a process are packed once."""

import subprocess
from pathlib import Path

import pytest

from ort_ops.build import compile_command, compile_units, compiler

UNITS: dict[str, tuple[str, ...]] = {"linear_w4a8/pack.cc": (), "library/packed.cc": ()}
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Werror")


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_equal_weights_share_their_packed_form(tmp_path: Path) -> None:
    command, program = compile_command(SANITIZE), tmp_path / "sharing"
    source = Path(__file__).with_name("sharing.cc")
    objects = compile_units(command, UNITS, tmp_path)
    subprocess.run([*command, source, *objects, "-o", program, "-pthread"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
