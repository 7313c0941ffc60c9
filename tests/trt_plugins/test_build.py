"""The plugin library: what it is made of, what it shows, what the program that builds it says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ort_ops.attention import op as attention
from ort_ops.cached_attention import body as cached_attention
from ort_ops.cached_attention.op import CachedForm
from ort_ops.kv_update import op as kv_update
from ort_ops.linear_w4a8.op import OPS, function_body
from tests.plugin_harness import Harness, needs_plugins, shown
from trt_plugins import build

FUNCTIONS = [
    *map(function_body, OPS),
    attention.function_body(),
    kv_update.function_body(),
    *(
        cached_attention.function_body(CachedForm(1, 1, v_bits=bits), rotary)
        for bits in (8, 16)
        for rotary in (False, True)
    ),
]
TINY = """
extern "C" __attribute__((visibility("default"))) int getCreators() { return 7; }
extern "C" __attribute__((visibility("default"))) int setLoggerFinder() { return 8; }
int shown() { return 9; }
"""


@needs_plugins
def test_it_has_every_operator_with_the_attributes_of_its_contract(harness: Harness) -> None:
    """Plugin and function body read the same attributes of a node."""
    wanted = {function.name: set(function.attributes) for function in FUNCTIONS}
    found = harness.operators()
    assert {name: set(attributes) for name, attributes in found.items()} == wanted


@needs_plugins
def test_it_shows_its_two_functions_alone(harness: Harness) -> None:
    assert shown(harness.library) == {"getCreators", "setLoggerFinder"}


def test_nothing_registers_itself_when_it_is_loaded() -> None:
    """The macro calls the registry, whose layout differs between TensorRT 10 and 11."""
    for name in build.source_files():
        if not name.endswith(".py"):
            assert "REGISTER_TENSORRT_PLUGIN" not in (build.ROOT / name).read_text(), name


def test_a_library_is_named_after_machine_and_gpu() -> None:
    assert build.library_name(87, "aarch64") == "libdqx-trt-aarch64-sm87.so"
    assert build.library_name(None, "x86_64") == "libdqx-trt-x86_64-host.so"
    assert build.library_name(120) == f"libdqx-trt-{os.uname().machine}-sm120.so"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder as in a bundle: the program itself, and two functions in the place of plugins."""
    root = tmp_path / "plugins"
    library = root / "trt_plugins" / "library"
    library.mkdir(parents=True)
    shutil.copyfile(build.__file__, root / "trt_plugins" / "build.py")
    (library / "creators.cc").write_text(TINY)
    return root


def test_the_digest_is_of_names_and_contents(sources: Path) -> None:
    whole = build.source_digest(sources)
    assert len(whole) == 64 and int(whole, 16) >= 0
    (sources / "trt_plugins" / "note.txt").write_text("no source")
    (sources / "built").mkdir()
    (sources / "built" / "creators.cc").write_text("no source")
    assert build.source_digest(sources) == whole
    file = sources / "trt_plugins" / "library" / "creators.cc"
    file.rename(file.with_name("other.cc"))
    renamed = build.source_digest(sources)
    file.with_name("other.cc").rename(file)
    assert build.source_digest(sources) == whole
    file.write_text(TINY + "\n")
    assert len({whole, renamed, build.source_digest(sources)}) == 3


def run_program(
    root: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The program on its own: no package of anybody's is there."""
    program = root / "trt_plugins" / "build.py"
    command = [sys.executable, "-I", "-S", str(program), *arguments]
    own = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=own)


HEADERS = {"TENSORRT_INCLUDE": str(build.find_headers())}


@needs_plugins
def test_the_program_builds_beside_its_sources(sources: Path) -> None:
    done = run_program(sources, "--host", environment=HEADERS)
    library = sources / "built" / build.library_name(None)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(library), "")
    assert shown(library) == {"getCreators", "setLoggerFinder"}
    assert [file.name for file in library.parent.iterdir()] == [library.name]
    assert library.stat().st_mode & 0o444 == 0o444


@needs_plugins
def test_what_the_compiler_says_is_passed_on_and_nothing_is_left(sources: Path) -> None:
    """A library that was there before stays."""
    built = sources / "built"
    built.mkdir()
    (built / build.library_name(None)).write_text("the last one")
    (sources / "trt_plugins" / "library" / "more.cc").write_text("int broken(")
    done = run_program(sources, "--host", environment=HEADERS)
    assert done.returncode == 1
    assert "more.cc" in done.stderr and "error:" in done.stderr
    assert (built / build.library_name(None)).read_text() == "the last one"
    assert len([*built.iterdir()]) == 1


@needs_plugins
def test_a_missing_compiler_is_named(sources: Path) -> None:
    done = run_program(sources, "--host", environment={**HEADERS, "CXX": "/no/compiler"})
    assert done.returncode == 1
    assert done.stderr == f"error: {build.NO_COMPILER}\n"


def test_a_missing_nvcc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: None)  # one in /usr/local is always found
    with pytest.raises(build.BuildError, match=r"^no nvcc"):
        build.build_library(tmp_path, 87)
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_missing_headers_are_named(sources: Path) -> None:
    environment = {"TENSORRT_INCLUDE": str(sources)}  # where they are not
    if any(Path("/usr/include").rglob("NvInferRuntime.h")):
        pytest.skip("TensorRT's headers are installed")
    done = run_program(sources, "--host", environment=environment)
    assert done.returncode == 1
    assert done.stderr == f"error: {build.NO_HEADERS}\n"


def test_headers_are_taken_from_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    assert build.find_headers() != tmp_path
    (tmp_path / "NvInferRuntime.h").touch()
    assert build.find_headers() == tmp_path


def test_nvcc_is_taken_from_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_nvcc() != tmp_path / "bin" / "nvcc"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(mode=0o755)
    assert build.find_nvcc() == tmp_path / "bin" / "nvcc"
