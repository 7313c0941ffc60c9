"""Versions of NVIDIA's software, read from what real installations say."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import machine_gpu
from exporter.machine_gpu import library_version, parse_headers, parse_nvcc

NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.6, V12.6.68\n"
HEADER_10_3 = """\
#define NV_INFER_VERSION_H
#define NV_TENSORRT_MAJOR 10 //!< TensorRT major version.
#define NV_TENSORRT_MINOR 3 //!< TensorRT minor version.
#define NV_TENSORRT_PATCH 0 //!< TensorRT patch version.
#define NV_TENSORRT_BUILD 26 //!< TensorRT build number.
"""
HEADER_10_14 = """\
#define TRT_MAJOR_ENTERPRISE 10
#define TRT_MINOR_ENTERPRISE 14
#define TRT_PATCH_ENTERPRISE 1
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< TensorRT major version.
#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< TensorRT minor version.
#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE //!< TensorRT patch version.
"""


def test_versions_of_compiler_and_headers() -> None:
    assert parse_nvcc(NVCC) == "12.6"
    assert parse_headers(HEADER_10_3) == "10.3.0"
    assert parse_headers(HEADER_10_14) == "10.14.1"
    assert parse_headers(HEADER_10_14.replace("#define TRT_MINOR_ENTERPRISE 14\n", "")) is None


@pytest.mark.parametrize(
    ("number", "version"),
    [
        (8602, "8.6.2"),
        (100300, "10.3.0"),
        (101602, "10.16.2"),
        (110400, "11.4.0"),
        (10701, "1.7.1"),
    ],
)
def test_versions_of_the_library(number: int, version: str) -> None:
    """What TensorRT 8.6.2, 10.3, 10.16.2, 11.4 and TensorRT for RTX 1.7.1 return."""
    assert library_version(number) == version


@given(text=st.text())
def test_any_text_is_survived(text: str) -> None:
    assert (parse_nvcc(f"release {text}") or "") in f"release {text}"
    assert parse_headers(text + HEADER_10_3) == "10.3.0" or "NV_TENSORRT" in text
    parse_headers(f"#define NV_TENSORRT_MAJOR {text}")


def test_headers_are_found_where_the_plugin_library_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "NvInferRuntime.h").touch()
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    assert machine_gpu.tensorrt_headers() == machine_gpu.Installed(None, str(tmp_path))
    (tmp_path / "NvInferVersion.h").write_text(HEADER_10_14)
    assert machine_gpu.tensorrt_headers() == machine_gpu.Installed("10.14.1", str(tmp_path))


def test_nvcc_is_found_where_the_plugin_library_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\ncat <<'END'\n{NVCC}END\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert machine_gpu.cuda_toolkit() == machine_gpu.Installed("12.6", str(nvcc))


@pytest.mark.skipif(not shutil.which("cc"), reason="compiles a stand-in for TensorRT")
def test_the_library_tells_its_own_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader reads its path when a process starts, so the name is a whole path here."""
    source, library = tmp_path / "one.c", tmp_path / "libnvinfer.so.10"
    source.write_text("int getInferLibVersion(void) { return 101602; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    names = (os.fspath(tmp_path / "libnvinfer.so.11"), os.fspath(library))
    monkeypatch.setattr(machine_gpu, "LIBRARIES", names)
    assert machine_gpu.tensorrt_library() == machine_gpu.Installed("10.16.2", str(library))


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert machine_gpu.debian_version("no-such-package-anywhere") is None
