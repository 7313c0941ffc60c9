"""Launchers touch no memory but their own, leave no output unwritten, and read on free banks."""

import subprocess
from pathlib import Path

import pytest

from tests.launched import compile_on_cpu, host_compiler, kernel_sources

SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SOURCES = (
    *kernel_sources("linear_w4a8"), *kernel_sources("attention"), *kernel_sources("kv_update"),
    *kernel_sources("cached_attention"), "launch_bounds.cc",
)  # fmt: skip


@pytest.mark.skipif(host_compiler() is None, reason="no g++")
def test_launchers_keep_to_their_memory(tmp_path: Path) -> None:
    program = compile_on_cpu(tmp_path / "bounds", SOURCES, *SANITIZE)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(", 0 bank conflicts\n"), done.stdout
