"""What a bundle has as engines, why one is refused, and what is chosen to decode then."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.graph_rules import GraphRules
from exporter.runtime.built_engines import BundleEngines, Here, read_engines, why_refused
from exporter.runtime.bundle import Bundle, read_bundle
from exporter.runtime.command import main
from exporter.runtime.errors import UserError
from exporter.runtime.open_model import Hardware, Model, open_model
from exporter.runtime.settings import Settings
from tests.cuda_stand_in import CudaStandIn
from tests.fixtures_lower import CANVAS, Lowered, golden, lower
from tests.tensorrt_stand_in import VERSION, install, write_engines, write_manifest
from trt_plugins.build import library_name

HERE = Here("tensorrt-rtx", VERSION, 89)
BASE = frozenset({"id1", "l1", "rest"})
Record = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    folder = tmp_path_factory.mktemp("engines")
    return lower(golden("llada"), "fp32", folder, rules=GraphRules(capacity=CANVAS))


@pytest.fixture
def bundle(made: Lowered, tmp_path: Path) -> Bundle:
    """A bundle of its own with engines of two graphs."""
    shutil.copytree(made.bundle.folder, tmp_path / "b")
    copied = replace(made.bundle, folder=tmp_path / "b")
    write_manifest(copied)
    kinds = [kind for kind in made.kinds if kind.name in ("full", "cached")]
    write_engines(copied.folder, kinds, Settings(gen_length=16, block_length=8), CANVAS)
    return copied


def engines_of(bundle: Bundle) -> BundleEngines:
    engines = read_engines(bundle.folder)
    assert engines is not None
    return engines


def change_records(bundle: Bundle, change: Callable[[Record], Record]) -> None:
    file = bundle.folder / "engines" / "engines.json"
    file.write_text(json.dumps([change(one) for one in json.loads(file.read_text())]))


def change_manifest(bundle: Bundle, change: Callable[[Record], None]) -> None:
    file = bundle.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_engines_built_on_the_device_stand_before_those_of_the_bundle(bundle: Bundle) -> None:
    (here, _) = json.loads((bundle.folder / "engines" / "engines.json").read_text())
    sealed = {k: v for k, v in here.items() if k not in ("bytes", "seconds", "plugins")}

    def seal(manifest: Record) -> None:
        manifest["engines"]["built"] = [sealed | {"version": "9.9.8"}]
        manifest["files"].append({"path": "engines/full.plan", "bytes": 12, "sha256": "0"})

    change_manifest(bundle, seal)
    first, second = engines_of(bundle).of("full")
    assert (first.version, first.bytes, first.seconds) == (VERSION, here["bytes"], 1.5)
    assert (second.version, second.bytes, second.seconds) == ("9.9.8", 12, None)


def test_a_bundle_for_onnx_runtime_has_none(made: Lowered, tmp_path: Path) -> None:
    write_manifest(made.bundle)
    assert read_engines(made.bundle.folder) is None


def test_a_damaged_list_is_said(bundle: Bundle) -> None:
    (bundle.folder / "engines" / "engines.json").write_text('[{"graph": "full"}]')
    with pytest.raises(UserError, match=r"engines\.json is damaged: KeyError\('path'\)"):
        read_engines(bundle.folder)


def test_nothing_is_refused_that_is_as_it_was_built(bundle: Bundle) -> None:
    engines = engines_of(bundle)
    assert [why_refused(one, engines, HERE) for one in engines.built] == [None, None]


REFUSED = [
    ({"runtime": "tensorrt"}, "by tensorrt 9.9.9, here is tensorrt-rtx 9.9.9"),
    ({"version": "9.9.8"}, "by tensorrt-rtx 9.9.8, here is tensorrt-rtx 9.9.9"),
    ({"sm": [86, 120]}, "for SM 86/120, here is SM 89"),
    ({"graph_sha256": "1"}, "of another graph than graphs/full.onnx"),
    ({"weights_sha256": "1"}, "over other weights than graphs/weights.bin"),
    ({"plugins": "1"}, "with other plugins than those of this bundle"),
    ({"bytes": 7}, "bytes, not 7 as built"),
    ({"path": "engines/none.plan"}, "engines/none.plan is missing"),
]


@pytest.mark.parametrize(("other", "says"), REFUSED)
def test_an_engine_of_something_else_is_refused_with_the_reason(
    bundle: Bundle, other: Record, says: str
) -> None:
    change_records(bundle, lambda record: record | other)
    engines = engines_of(bundle)
    reason = why_refused(engines.of("full")[0], engines, HERE)
    assert reason is not None
    assert reason.startswith("engines/") and reason.endswith(says)


def test_a_bundle_that_was_built_again_refuses_the_engines_left_over(bundle: Bundle) -> None:
    def rebuilt(manifest: Record) -> None:
        for file in manifest["files"]:
            if file["path"] == "graphs/weights.bin":
                file["sha256"] = "2" * 64

    change_manifest(bundle, rebuilt)
    engines = engines_of(bundle)
    reason = why_refused(engines.of("cached")[0], engines, HERE)
    assert reason is not None and "other weights" in reason


def opened(bundle: Bundle, provider: str | None, said: list[str], **options: Any) -> Model:
    read = read_bundle(bundle.folder)
    return open_model(read, False, BASE, False, Hardware(provider, 1), say=said.append, **options)


def test_an_engine_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    install(monkeypatch, CudaStandIn())
    said: list[str] = []
    for provider in (None, "tensorrt-rtx"):
        assert (
            str(opened(bundle, provider, said).runs_on) == "tensorrt-rtx 9.9.9, engines/full.plan"
        )
    assert opened(bundle, "cpu", said).runs_on.provider == "cpu"
    assert not said


def test_another_graph_that_can_answer_may_have_the_engine(
    monkeypatch: pytest.MonkeyPatch, made: Lowered, bundle: Bundle
) -> None:
    install(monkeypatch, CudaStandIn())
    kinds = [kind for kind in made.kinds if kind.name == "full-sample"]
    write_manifest(bundle)
    write_engines(bundle.folder, kinds, Settings(gen_length=16, block_length=8), CANVAS)
    assert opened(bundle, None, []).runs_on.file == "engines/full-sample.plan"


def no_gpu(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> dict[str, Any]:
    install(monkeypatch, CudaStandIn(gpus=0))
    return {}


def no_module(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> dict[str, Any]:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    return {}


def no_engine(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> dict[str, Any]:
    (bundle.folder / "engines" / "engines.json").unlink()
    return {}


def another_gpu(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> dict[str, Any]:
    install(monkeypatch, CudaStandIn(sm=120))
    return {}


def too_many(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> dict[str, Any]:
    return {"rows": 2}


def restricted(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> dict[str, Any]:
    install(monkeypatch, CudaStandIn())
    return {"allowed": np.arange(bundle.model.vocab_size) < 9}


def no_plugins(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> dict[str, Any]:
    install(monkeypatch, CudaStandIn())
    change_records(bundle, lambda record: record | {"plugins": "p"})
    change_manifest(bundle, lambda manifest: manifest["engines"].update(plugins="p"))
    return {}


PREVENTED = [
    (no_gpu, "there is no NVIDIA GPU to use: cudaSetDevice: no_device", "nvidia-smi"),
    (no_module, "tensorrt-rtx is not installed", "pip install tensorrt-rtx-cu13-bindings"),
    (no_engine, "no engine of full is built", "build_engine.py --graph full"),
    (another_gpu, "for SM 89, here is SM 120", "build_engine.py"),
    (too_many, "its engines take 1 sequences at once, not 2", "--engine-batch"),
    (restricted, "engines predict every token of the vocabulary", "--allow-ids"),
    (no_plugins, "-sm89.so, with the plugins of its engines, is not built", "build.py --sm 89"),
]


@pytest.mark.parametrize(("prevent", "says", "hint"), PREVENTED)
def test_the_reason_is_said_and_onnx_runtime_runs_unless_the_engine_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    bundle: Bundle,
    prevent: Callable[[pytest.MonkeyPatch, Bundle], dict[str, Any]],
    says: str,
    hint: str,
) -> None:
    options, said = prevent(monkeypatch, bundle), list[str]()
    assert opened(bundle, None, said, **options).runs_on.runtime == "onnxruntime"
    (line,) = said
    assert line.startswith("no engine runs here (") and says in line
    assert line.endswith("; ONNX Runtime runs the graph")
    with pytest.raises(UserError) as raised:
        opened(bundle, "tensorrt-rtx", said, **options)
    assert says in str(raised.value) and hint in raised.value.hint
    assert len(said) == 1


def test_plugins_are_loaded_once(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    no_plugins(monkeypatch, bundle)
    trt = install(monkeypatch, CudaStandIn())
    built = bundle.folder / "plugins" / "built"
    built.mkdir(parents=True)
    library = built / library_name(89)
    library.write_bytes(b"")
    with pytest.raises(UserError, match=r"sm89\.so cannot be loaded"):
        opened(bundle, "tensorrt-rtx", [])
    library.write_bytes(b"library")
    for _ in range(2):
        opened(bundle, "tensorrt-rtx", [])
    assert trt.registry.loaded == [str(library)]


def test_engines_of_another_runtime_are_no_engines_here(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="are for tensorrt-rtx, not tensorrt"):
        opened(bundle, "tensorrt", [])


def test_a_bundle_without_engines_cannot_be_forced_to_one(made: Lowered) -> None:
    write_manifest(made.bundle)
    with pytest.raises(UserError, match="no engines: it is made for ONNX Runtime"):
        opened(made.bundle, "tensorrt", [])
    said: list[str] = []
    assert opened(made.bundle, None, said).runs_on.file == "graphs/full.onnx"
    assert not said


def test_the_command_says_so_on_stderr_once(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    no_module(monkeypatch, bundle)
    argv = ["--ids", "5,7", "--ids", "5,8", "--json", "--steps", "8"]
    assert main(bundle.folder, argv) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["runs_on"]["provider"] for line in out.splitlines()] == ["cpu", "cpu"]
    assert err.count("no engine runs here") == 1
    assert main(bundle.folder, [*argv, "--provider", "tensorrt-rtx"]) == 1
    assert "error: no engine runs here: tensorrt-rtx is not installed" in capsys.readouterr().err
