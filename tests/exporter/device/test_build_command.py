"""The command line, and what it says on machines that cannot build."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.device import build_command
from exporter.device.build_command import main
from exporter.device.build_error import EngineError
from exporter.device.this_gpu import Gpu
from tests.engine_bundle import write_bundle, write_engines
from tests.stand_in_builder import TensorRT

ROOT = Path(__file__).parents[3]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Gpu:
        raise EngineError("no GPU here")

    monkeypatch.setattr(build_command, "this_gpu", none)


@pytest.fixture
def orin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_command, "this_gpu", lambda: Gpu("Orin", 87, shares_memory=True))


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Error and hint of a run that fails."""
    assert main(folder, arguments) == 1
    out, err = capsys.readouterr()
    error, *hint = err.splitlines()
    assert not out
    assert error.startswith("error: ")
    assert len(hint) <= 1
    return error, "".join(hint)


@pytest.mark.usefixtures("orin")
def test_it_builds_and_prints_paths_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path)
    trt = TensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    asked = ["--graph", "cached", "--graph", "full", "--level", "5", "--workspace-mib", "64"]
    assert main(tmp_path, asked) == 0
    out, err = capsys.readouterr()
    assert out == "engines/cached.plan\nengines/full.plan\n"
    assert [line.split()[0] for line in err.splitlines()[::2]] == ["trtexec", "trtexec"]
    assert {config.builder_optimization_level for config in trt.configs} == {5}
    assert {config.workspace for config in trt.configs} == {64 << 20}
    assert main(tmp_path, []) == 0
    assert "engines/full.plan is there" in capsys.readouterr().err


PROGRAM = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from exporter.device import build_command
from tests.stand_in_builder import TensorRT
def build_engines(folder, trt, graphs, done, *rest):
    print("begun", flush=True)
    time.sleep(60)
build_command.build_engines = build_engines
sys.modules["tensorrt_rtx_bindings"] = TensorRT()
sys.exit(build_command.main(pathlib.Path(sys.argv[2]), []))
"""


def test_an_interrupt_ends_a_build_at_once(tmp_path: Path) -> None:
    """By the signal itself: Python, which TensorRT keeps waiting, would exit with a code."""
    write_bundle(tmp_path, "tensorrt-rtx", (89,))
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT


@pytest.mark.usefixtures("no_gpu")
def test_where_there_is_no_gpu_it_says_where_to_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tmp_path, sm=(87, 110))
    error, hint = refused(tmp_path, capsys)
    assert "no GPU here" in error
    assert "SM 87/110" in hint and "python build_engine.py" in hint


@pytest.mark.usefixtures("orin")
@pytest.mark.parametrize(
    ("runtime", "says"), [("tensorrt", "pip install tensorrt"), ("tensorrt-rtx", "rtx-cu13-libs")]
)
def test_a_module_that_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    runtime: str, says: str,
) -> None:  # fmt: skip
    write_bundle(tmp_path, runtime)
    module = build_command.MODULES[runtime]
    monkeypatch.setitem(sys.modules, module, None)
    error, hint = refused(tmp_path, capsys)
    assert f"the module {module} cannot be imported" in error
    assert says in hint


@pytest.mark.usefixtures("no_gpu")
def test_wrong_names_and_folders_are_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no manifest.json" in refused(tmp_path, capsys)[0]
    write_engines(tmp_path, None)
    assert "has no engines" in refused(tmp_path, capsys)[0]
    write_bundle(tmp_path)
    error, hint = refused(tmp_path, capsys, "--graph", "half")
    assert "`half`" in error and "full-sample" in hint


@pytest.mark.usefixtures("no_gpu")
def test_by_hand_plugins_come_first_where_they_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the first GPU that the bundle is made for, where none is here."""
    write_bundle(tmp_path, sm=(110, 87), plugins=True)
    assert main(tmp_path, ["--trtexec", "--graph", "full"]) == 0
    compile_line, build_line = capsys.readouterr().out.splitlines()
    program = tmp_path / "plugins" / "trt_plugins" / "build.py"
    assert compile_line == f"python {program} --sm 110"
    spec = importlib.util.spec_from_file_location("build", program)
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    library = program.parents[1] / "built" / build.library_name(110)
    assert f"--dynamicPlugins={library} " in build_line
    library.parent.mkdir()
    library.touch()
    main(tmp_path, ["--trtexec", "--graph", "full"])
    assert capsys.readouterr().out.splitlines() == [build_line]
