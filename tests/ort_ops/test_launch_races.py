"""Warps that run side by side share memory only over barriers: ThreadSanitizer watches kernels.

Outputs are the same whether copies are made at once or when they are waited for, and whether the
lanes of a warp take their turns forwards or backwards.
"""

import subprocess
from pathlib import Path

import pytest

from tests.launched import compile_on_cpu, host_compiler, kernel_sources

pytestmark = pytest.mark.skipif(host_compiler() is None, reason="no g++")
ON_THREADS = ("-O1", "-g", "-DDQX_ON_THREADS", "-fsanitize=thread", "-pthread")
OPERATORS = ("linear_w4a8", "attention", "cached_attention", "kv_update")
FORMS = "60"


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_on_cpu(tmp_path_factory.mktemp("races") / "races", ["races.cc"], *ON_THREADS)


@pytest.mark.parametrize(
    ("what", "result"),
    [
        ("barrier", "63 0\n"),
        ("wait", "1 64\n"),
        ("no wait", "0 0\n"),
        ("product", "32 32\n"),
        ("no product", "0 0\n"),
    ],
)
def test_copies_and_products_are_made_when_they_are_waited_for(
    small: Path, what: str, result: str
) -> None:
    done = run(small, what)
    assert (done.returncode, done.stdout) == (0, result), done.stderr


def test_a_race_is_seen(small: Path) -> None:
    done = run(small, "no barrier")
    assert done.returncode and "data race" in done.stderr


@pytest.mark.cuda_compile
def test_kernels_have_no_races(tmp_path: Path) -> None:
    sources = [name for op in OPERATORS for name in kernel_sources(op)] + ["launch_bounds.cc"]
    plain = run(compile_on_cpu(tmp_path / "plain", sources, "-O1"), FORMS)
    assert plain.returncode == 0
    program = compile_on_cpu(tmp_path / "threads", sources, *ON_THREADS)
    for words in ((), ("late",), ("backwards",), ("late", "backwards")):
        done = run(program, FORMS, *words)
        assert done.returncode == 0, done.stderr[:4000]
        assert done.stdout == plain.stdout, words
