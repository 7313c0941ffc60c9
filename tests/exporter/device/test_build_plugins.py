"""The plugin library that engines are built with. A compiler that writes its arguments stands in
for the real ones, which tests/trt_plugins runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.device.build_error import EngineError
from exporter.device.build_plugins import ahead_of_time, compiler, load, on_device
from tests.engine_bundle import write_bundle
from tests.stand_in_builder import TensorRT

WRITES = """#!/bin/sh
echo "$*" >> CALLS
for last; do :; done
case "$*" in
  *sm_120*) echo 'sm_120 is not known' >&2; exit 1;;
esac
echo "$*" > "$last"
"""
Tools = Callable[..., Path]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Sets a machine up that has headers, g++, and nvcc unless told otherwise; what was called."""

    def up(nvcc: bool = True, headers: bool = True) -> Path:
        calls, folder = tmp_path / "calls", tmp_path / "cuda" / "bin"
        folder.mkdir(parents=True)
        for name in ["g++", *["nvcc"] * nvcc]:
            (folder / name).write_text(WRITES.replace("CALLS", str(calls)))
            (folder / name).chmod(0o755)
        (tmp_path / "include").mkdir()
        if headers:
            (tmp_path / "include" / "NvInferRuntime.h").touch()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
        monkeypatch.setenv("CUDA_HOME", str(folder.parent))
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path / "include"))
        return calls

    return up


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b", plugins=True)
    return tmp_path / "b"


def build_of(folder: Path, monkeypatch: pytest.MonkeyPatch, nvcc: bool = True) -> object:
    """build.py of the bundle, on a machine whose own nvcc is not looked for."""
    import json

    engines = json.loads((folder / "manifest.json").read_text())["engines"]
    build = compiler(folder, engines["plugins"])
    if not nvcc:
        monkeypatch.setattr(build, "find_nvcc", lambda: None)
    return build


def test_the_library_is_compiled_once_for_the_gpu_at_hand(
    folder: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = tools()
    build = build_of(folder, monkeypatch)
    library = on_device(folder, build, 87)
    assert library.parent == folder / "plugins" / "built"
    assert library.name.endswith("-sm87.so")
    assert "code=sm_87" in calls.read_text()
    assert capsys.readouterr().err == "compiling the plugins for SM 87, once\n"
    before = calls.read_bytes()
    assert on_device(folder, build, 87) == library
    assert calls.read_bytes() == before


def test_what_is_missing_on_the_device_is_said(
    folder: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools(nvcc=False)
    with pytest.raises(EngineError, match=r"no nvcc(.|\n)*apt-get install cuda-toolkit"):
        on_device(folder, build_of(folder, monkeypatch, nvcc=False), 87)


def test_ahead_of_time_libraries_of_all_gpus_come_with_the_bundle(
    folder: Path, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools()
    library = ahead_of_time(folder, build_of(folder, monkeypatch), [86, 89], tmp_path / "scratch")
    built = sorted(path.name[-7:] for path in library.parent.iterdir())
    assert built == ["sm86.so", "sm89.so"]
    assert library.name.endswith("sm86.so")
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(("nvcc", "sm", "says"), [(False, 86, "no nvcc"), (True, 120, "nvcc")])
def test_what_cannot_be_compiled_for_a_gpu_is_for_the_host_and_does_not_stay(
    folder: Path, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], nvcc: bool, sm: int, says: str,
) -> None:  # fmt: skip
    tools(nvcc)
    build = build_of(folder, monkeypatch, nvcc)
    library = ahead_of_time(folder, build, [sm], tmp_path / "scratch")
    assert library.parent == tmp_path / "scratch"
    assert library.name.endswith("-host.so")
    assert not [*folder.glob("plugins/built/*")]
    assert "warning: the plugins are not compiled here, but on the device" in (
        said := capsys.readouterr().err
    )
    assert says in said


def test_without_headers_no_engine_is_built(
    folder: Path, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools(nvcc=False, headers=False)
    build = build_of(folder, monkeypatch, nvcc=False)
    monkeypatch.setattr(build, "find_headers", lambda: None)
    with pytest.raises(EngineError, match=r"NvInferRuntime\.h"):
        ahead_of_time(folder, build, [86], tmp_path / "scratch")


def test_other_sources_than_the_manifest_states_are_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="not those that the manifest states"):
        compiler(folder, "0" * 64)
    (folder / "plugins" / "trt_plugins" / "build.py").unlink()
    with pytest.raises(EngineError, match=r"build\.py is missing"):
        compiler(folder, "0" * 64)


def test_a_library_that_does_not_load_is_named() -> None:
    trt = TensorRT()
    load(trt, Path("l.so"))
    assert trt.libraries == ["l.so"]
    with pytest.raises(EngineError, match=r"10\.16\.2 does not load l\.so"):
        load(TensorRT(loads_libraries=False), Path("l.so"))
