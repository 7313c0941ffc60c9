"""What the library for GPUs is made of, what it shows, and that it opens without a GPU."""

import shutil
import subprocess
from pathlib import Path

import onnxruntime as ort
import pytest

from ort_ops.build_cuda import (
    ROOT,
    CudaBuildError,
    build_library,
    find_nvcc,
    host_command,
    library_name,
    prebuild,
    source_files,
)
from tests.launched import host_compiler

FUNCTIONS = {
    "RegisterCustomOps", "launch_linear", "launch_planned_linear", "launch_attention",
    "launch_cached_attention", "launch_kv_update", "size_of_linear", "size_of_attention",
    "size_of_cached_attention", "size_of_kv_update", "linear_workspace", "attention_workspace",
    "cached_attention_workspace",
}  # fmt: skip
needs_compiler = pytest.mark.skipif(host_compiler() is None, reason="no g++")


def shown(library: Path) -> set[str]:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    return {line.split()[-1] for line in listed.stdout.splitlines()}


@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is missing")
def test_nothing_but_c_functions_is_shown() -> None:
    assert shown(prebuild(None)) == FUNCTIONS


@needs_compiler
def test_sources_are_all_that_is_included() -> None:
    """A header that is left out would be missing in bundles, and its changes not be noticed."""
    names = source_files()
    units = [str(ROOT / name) for name in names if name.endswith((".cc", ".cu"))]
    command = [*host_command(), "-MM", "-x", "c++", *units]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {Path(word).resolve() for word in listed.split() if word.startswith(str(ROOT))}
    assert len(found) > len(units)
    assert found <= {(ROOT / name).resolve() for name in names}


def test_a_missing_nvcc_is_said_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ort_ops.build_cuda.find_nvcc", lambda: None)
    with pytest.raises(CudaBuildError, match="apt-get install cuda-toolkit"):
        build_library(tmp_path, 87)


def test_older_gpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CudaBuildError, match=r"8\.0 and later, not SM 75"):
        build_library(tmp_path, 75)
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc")
@pytest.mark.cuda_compile
def test_the_library_for_a_gpu_opens_without_one(tmp_path: Path) -> None:
    library = build_library(tmp_path, 87, ["-Xcompiler=-Werror"])
    assert library.name == library_name(87)
    assert shown(library) == FUNCTIONS
    ort.SessionOptions().register_custom_ops_library(str(library))
