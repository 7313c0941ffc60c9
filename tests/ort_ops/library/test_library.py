"""What the compiled library shows to the program that loads it, and what it asks of it."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ort_ops.build import EXPORTS, compiler, prebuild

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
needs_binutils = pytest.mark.skipif(
    not (shutil.which("nm") and shutil.which("readelf")), reason="nm or readelf is missing"
)
GetApi = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)


class ApiBase(ctypes.Structure):
    """OrtApiBase: what ONNX Runtime hands to a library."""

    _fields_ = [("get_api", GetApi), ("version", ctypes.c_void_p)]


@pytest.fixture(scope="module")
def library() -> Path:
    return prebuild()


def text_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_binutils
def test_nothing_but_the_two_functions_is_shown(library: Path) -> None:
    """Templates of the C++ library, were they shown, would serve other libraries as well."""
    lines = text_of("nm", "-D", "--defined-only", library).splitlines()
    assert sorted(line.split()[-1] for line in lines) == sorted(EXPORTS)


@needs_binutils
def test_only_the_languages_own_libraries_are_needed(library: Path) -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text_of("readelf", "-d", library))
    allowed = r"(libc|libm|libpthread|libstdc\+\+|libgcc_s|ld-linux-[\w-]+)\.so\.\d+"
    assert needed
    assert [name for name in needed if not re.fullmatch(allowed, name)] == []


def test_an_older_onnx_runtime_gets_no_operators_and_no_error(library: Path) -> None:
    asked: list[int] = []

    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    options = None  # must not be touched
    base = ApiBase(GetApi(asked.append), None)  # append returns None: no such version
    assert register(options, ctypes.byref(base)) is None
    assert asked == [18]


def test_the_kernel_in_use_has_a_name(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_of = ctypes.CDLL(str(library)).dqx_kernel_name
    name_of.restype = ctypes.c_char_p
    monkeypatch.delenv("DQX_KERNEL", raising=False)
    assert name_of() is not None
    monkeypatch.setenv("DQX_KERNEL", "portable")
    assert name_of() == b"portable"
    monkeypatch.setenv("DQX_KERNEL", "abacus")
    assert name_of() is None
