"""The stage `engine` and the command, where they end before TensorRT begins."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import targets
from exporter import engines
from exporter.device import build_command
from exporter.engines import EngineOptions, build_engines, build_in_place, check_builder
from exporter.errors import UserError
from exporter.manifest import Engines, Manifest
from exporter.progress import Progress
from tests.commands import QUICK_W4, assert_refused, build, content, dqexport
from tests.engine_bundle import write_bundle
from trt_plugins.build import BuildError

RECORD: dict[str, object] = {
    "graph": "full", "path": "engines/full.plan", "sha256": "e", "graph_sha256": "g",
    "weights_sha256": "w", "runtime": "tensorrt", "version": "10.3.0", "sm": [87],
    "plugins": None, "bytes": 1, "seconds": 2.5,
}  # fmt: skip
RTX, ORIN = targets.load("rtx-40"), targets.load("jetson-orin")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for a board that this machine is not."""
    folder = tmp_path_factory.mktemp("engines") / "b"
    build(*QUICK_W4, "--target", "jetson-orin", "-o", folder)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is shown to the processes that are started, where this machine has one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_board_that_is_not_this_machine_is_told_what_to_run_there(bundle: Path) -> None:
    before = content(bundle)
    outcome = dqexport("engine", bundle)
    assert_refused(outcome, "Building an engine failed: no GPU", "`python build_engine.py`")
    assert "SM 87" in outcome.err
    assert content(bundle) == before


def test_the_bundle_has_the_program_that_says_the_same(bundle: Path) -> None:
    """What `dqexport engine --trtexec` prints is what build_engine.py prints in the bundle."""
    asked = ("--trtexec", "--graph", "cached", "--level", "2", "--workspace-mib", "64")
    outcome = dqexport("engine", bundle, *asked)
    assert outcome.code == 0, outcome.err
    command = [sys.executable, "-I", "-B", str(bundle / "build_engine.py"), str(bundle), *asked]
    own = subprocess.run(command, capture_output=True, text=True, check=True)
    assert own.stdout == outcome.out
    assert outcome.out.startswith("trtexec --onnx=")
    assert "--memPoolSize=workspace:64" in outcome.out


def test_names_and_targets_without_engines_are_refused(bundle: Path, tmp_path: Path) -> None:
    assert_refused(dqexport("engine", bundle, "--graph", "half"), "`half`", "full-sample")
    assert_refused(dqexport("engine", bundle, "--graph", "half", "--trtexec"), "`half`", "cached")
    build(*QUICK_W4, "-o", tmp_path / "b")
    assert_refused(dqexport("engine", tmp_path / "b"), "has no engines", "dqexport targets")


def test_a_manifest_of_before_there_were_plugins_reads(tmp_path: Path) -> None:
    made = write_bundle(tmp_path) | {"precision": "fp16", "batch": 1}
    one = RECORD.copy()
    for newer in ("plugins", "bytes", "seconds"):
        del one[newer]
    read = Engines.model_validate(made | {"built": [one]})
    assert read.plugins is None
    assert (read.built[0].plugins, read.built[0].bytes, read.built[0].seconds) == (None, None, None)


def test_a_process_that_ends_itself_leaves_its_code_and_what_plugins_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Engines.model_validate(write_bundle(tmp_path) | {"precision": "fp16", "batch": 1})
    program = "import os, sys; print('DqxAttention: too wide', flush=True); os.abort()"
    monkeypatch.setattr(engines, "PROGRAM", program)
    with pytest.raises(UserError, match=r"failed: DqxAttention: too wide; exit code -6$"):
        build_engines(tmp_path, made, ["full"], Progress())


def test_an_error_is_told_apart_from_what_was_said_before_and_its_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Engines.model_validate(write_bundle(tmp_path) | {"precision": "fp16", "batch": 1})
    manifest = Manifest.model_construct(target="jetson-orin", engines=made)
    said = ["full: tactics", "error: a\nb", "hint: c"]
    program = f"import sys; print(*{said!r}, sep='\\n', file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr(engines, "PROGRAM", program)
    with pytest.raises(UserError, match=r"^Building an engine failed: a\nb$") as caught:
        build_in_place(tmp_path, manifest, EngineOptions())
    assert caught.value.hint == "c"
    assert capsys.readouterr().err == "full: tactics\n"


def test_what_is_missing_is_said_before_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device other things are needed, which are looked for there."""
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    check_builder(ORIN, plugins=True)
    with pytest.raises(UserError, match="tensorrt_rtx_bindings") as caught:
        check_builder(RTX)
    stated = [line.partition(";")[0].strip() for line in requires("dqexport") or ()
              if "'rtx'" in line.replace('"', "'")]  # fmt: skip
    assert stated
    assert all(line in caught.value.hint for line in stated)


def test_plugins_need_a_compiler_where_engines_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[str]:
        raise BuildError("no headers\nelsewhere: pip install them")

    monkeypatch.setattr(engines, "find_spec", lambda _: object())
    monkeypatch.setattr(engines, "host_command", missing)
    check_builder(RTX)
    check_builder(ORIN, plugins=True)
    with pytest.raises(UserError, match=r"no headers$") as caught:
        check_builder(RTX, plugins=True)
    assert "pip install them" in caught.value.hint
    assert "--no-operators" in caught.value.hint


def test_only_targets_with_engines_have_a_module() -> None:
    """Every runtime of a target that is built elsewhere or on the device has its module named."""
    found = {targets.load(name).runtime for name in targets.names()} - {"onnxruntime"}
    assert found == set(build_command.MODULES)


def test_json_lists_what_there_is(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is there is listed as one that was built."""
    folder = tmp_path / "b"
    shutil.copytree(bundle, folder)
    text = json.dumps([RECORD, RECORD | {"graph": "cached", "path": "engines/cached.plan"}])
    program = (
        "import pathlib, sys; f = pathlib.Path(sys.argv[2]) / 'engines'; f.mkdir(); "
        f"(f / 'engines.json').write_text({text!r}); print('engines/full.plan')"
    )
    monkeypatch.setattr(engines, "PROGRAM", program)
    outcome = dqexport("engine", folder, "--json")
    assert json.loads(outcome.out) == [RECORD]
