"""Which engines are built, kept and refused. A stand-in for TensorRT builds them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.device import build_plans
from exporter.device.build_error import EngineError
from exporter.device.build_network import Effort
from exporter.device.build_plans import build_engines, choose, in_bounds
from exporter.device.build_records import RECORD
from exporter.device.bundle_files import digest
from exporter.device.this_gpu import Gpu
from exporter.manifest import BuiltEngine
from tests.engine_bundle import PROFILES, write_bundle, write_engines
from tests.stand_in_builder import TensorRT

ORIN = Gpu("Orin", 87, shares_memory=True)
PLANS = [
    {"graph": "full", "default": True},
    {"graph": "full-sample", "default": False},
    {"graph": "cached", "default": True},
]


def run(
    folder: Path, trt: TensorRT, graphs: list[str] | None = None, gpu: Gpu | None = ORIN,
    force: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    done: list[dict[str, Any]] = []
    records = build_engines(folder, trt, graphs, done.append, gpu, Effort(workspace_mib=64), force)
    assert done == records
    return records


def built(trt: TensorRT) -> list[str]:
    """Graphs that were built since it was asked last."""
    names = [Path(path).stem for path in trt.builds]
    trt.builds.clear()
    return names


def test_defaults_or_what_is_named_in_that_order() -> None:
    assert [plan["graph"] for plan in choose(PLANS, None)] == ["full", "cached"]
    named = ["cached", "full-sample"]
    assert [plan["graph"] for plan in choose(PLANS, named)] == named
    with pytest.raises(EngineError, match="`half`") as caught:
        choose(PLANS, ["half"])
    assert caught.value.hint == "There are full, full-sample, cached"


def test_records_say_what_engines_are_good_for(tmp_path: Path) -> None:
    write_bundle(tmp_path, sm=(86, 87))
    records = run(tmp_path, TensorRT())
    assert json.loads((tmp_path / RECORD).read_text()) == records
    for record, graph in zip(records, ("full", "cached"), strict=True):
        one = BuiltEngine(**record)  # no field is unknown to the manifest
        file = tmp_path / f"engines/{graph}.plan"
        assert (one.graph, tmp_path / one.path) == (graph, file)
        assert (one.sha256, one.bytes) == (digest(file), file.stat().st_size)
        assert one.graph_sha256 == digest(tmp_path / "graphs" / f"{graph}.onnx")
        assert one.weights_sha256 == digest(tmp_path / "graphs" / "weights.bin")
        assert (one.runtime, one.version, one.sm) == ("tensorrt", "10.16.2", [87])
        assert one.plugins is None
        assert one.seconds is not None
        version, profiles = json.loads(file.read_bytes())
        assert (version, len(profiles)) == ("10.16.2", len(PROFILES))


def test_what_was_built_of_the_same_stays(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    trt = TensorRT()
    run(tmp_path, trt, ["full"])
    assert built(trt) == ["full"]
    records = run(tmp_path, trt)
    assert built(trt) == ["cached"]
    assert run(tmp_path, trt) == records
    assert built(trt) == []
    run(tmp_path, trt, force=True)
    assert built(trt) == ["full", "cached"]


@pytest.mark.parametrize("what", ["graph", "weights", "version", "engine", "gpu"])
def test_what_was_built_of_something_else_is_built_again(tmp_path: Path, what: str) -> None:
    write_bundle(tmp_path, sm=(87, 110))
    trt, gpu = TensorRT(), ORIN
    run(tmp_path, trt, ["full"])
    built(trt)
    if what == "version":
        trt = TensorRT("10.17.0")
    elif what == "gpu":
        gpu = replace(ORIN, sm=110)
    else:
        places = {"graph": "graphs/full.onnx", "weights": "graphs/weights.bin",
                  "engine": "engines/full.plan"}  # fmt: skip
        file = tmp_path / places[what]
        file.write_bytes(file.read_bytes() + b"\x80\x01\x01")  # a field more, where it is a graph
    (record,) = run(tmp_path, trt, ["full"], gpu)
    assert built(trt) == ["full"]
    assert record["sha256"] == digest(tmp_path / "engines" / "full.plan")


def test_an_engine_that_the_bundle_came_with_is_neither_built_again_nor_written_over(
    tmp_path: Path,
) -> None:
    engines = write_bundle(tmp_path, "tensorrt-rtx", (86, 89))
    trt = TensorRT("1.7.1")
    sealed = run(tmp_path, trt, gpu=None)
    assert [config.capabilities for config in trt.configs] == [["SM86", "SM89"]] * 2
    (tmp_path / RECORD).unlink()
    write_engines(tmp_path, engines | {"built": sealed})
    built(trt)
    assert run(tmp_path, trt, gpu=None) == sealed
    assert built(trt) == []
    with pytest.raises(EngineError, match="came with the engine of full"):
        run(tmp_path, trt, gpu=None, force=True)
    (newer,) = run(tmp_path, TensorRT("1.8.0"), ["full"], gpu=None)
    assert newer["path"] == "engines/full-1.8.0.plan"
    assert digest(tmp_path / sealed[0]["path"]) == sealed[0]["sha256"]


def test_a_build_that_fails_leaves_what_was_built_before(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    run(tmp_path, TensorRT(), ["full"])
    before = {path: path.read_bytes() for path in (tmp_path / "engines").iterdir()}
    with pytest.raises(EngineError, match="out of memory"):
        run(tmp_path, TensorRT(build_error="out of memory"), force=True)
    assert {path: path.read_bytes() for path in (tmp_path / "engines").iterdir()} == before


def test_a_gpu_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    trt = TensorRT()
    with pytest.raises(EngineError, match="Orin is SM 89; the bundle is made for SM 87") as caught:
        run(tmp_path, trt, gpu=replace(ORIN, sm=89))
    assert "python build_engine.py" in caught.value.hint
    assert not trt.builds


def test_a_bundle_without_engines_or_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no manifest\.json"):
        run(tmp_path, TensorRT())
    write_engines(tmp_path, None)
    with pytest.raises(EngineError, match="a runtime that has no engines"):
        run(tmp_path, TensorRT())


def test_limits_are_those_of_the_gpu_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is left where the CPU shares it; TensorRT's own where it does not."""
    monkeypatch.setattr(build_plans, "available_mib", lambda: 6000)
    cache = tmp_path / "engines" / "timing.cache"
    own = replace(ORIN, shares_memory=False)
    assert in_bounds(tmp_path, ORIN, None) == Effort(None, 3000, cache)
    assert in_bounds(tmp_path, ORIN, Effort(1, 64)) == Effort(1, 64, cache)
    assert in_bounds(tmp_path, own, None) == Effort(None, None, cache)
    assert in_bounds(tmp_path, None, Effort(2)) == Effort(2)
