"""What a builder is told, in versions that differ."""

from pathlib import Path

import pytest

from exporter.device.build_error import EngineError
from exporter.device.build_network import Effort, serialized
from tests.engine_bundle import PROFILES, write_bundle
from tests.stand_in_builder import TensorRT, parse_error


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    write_bundle(tmp_path)
    return tmp_path / "graphs" / "full.onnx"


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 1 << 1), ("11.4.0", 0)])
def test_networks_are_strongly_typed_where_one_has_to_ask(
    graph: Path, version: str, flags: int
) -> None:
    trt = TensorRT(version)
    serialized(trt, graph, (), PROFILES)
    assert trt.flags == [flags]


def test_every_profile_has_the_shapes_of_what_varies(graph: Path) -> None:
    trt = TensorRT()
    serialized(trt, graph, (), PROFILES)
    assert trt.configs[0].profiles == [
        {"ids": [[1, 1], [1, 16], [2, 16]], "window": [[1], [8], [16]]},
        {"ids": [[1, 17], [1, 64], [2, 64]], "window": [[1], [8], [64]]},
    ]


def test_capabilities_are_named_ahead_of_time_alone(graph: Path) -> None:
    trt = TensorRT()
    serialized(trt, graph, (86, 89), PROFILES)
    serialized(trt, graph, (), PROFILES)
    assert [config.capabilities for config in trt.configs] == [["SM86", "SM89"], []]


@pytest.mark.parametrize("plugins", [True, False])
def test_memory_is_shared_where_plugins_may(graph: Path, plugins: bool) -> None:
    trt = TensorRT()
    serialized(trt, graph, (), PROFILES, plugins)
    assert trt.configs[0].previews == ["aliased"] * plugins


def test_the_builder_may_spend_what_it_is_given(graph: Path) -> None:
    trt = TensorRT()
    serialized(trt, graph, (), PROFILES, effort=Effort(level=5, workspace_mib=3))
    serialized(trt, graph, (), PROFILES)
    assert [c.builder_optimization_level for c in trt.configs] == [5, 3]
    assert [c.workspace for c in trt.configs] == [3 << 20, None]
    assert [c.cache for c in trt.configs] == [None, None]


def test_timings_go_on_where_they_fit(graph: Path, tmp_path: Path) -> None:
    """Those of another version, or damaged ones, are forgotten; what was measured is kept."""
    effort = Effort(timing_cache=tmp_path / "timing.cache")
    for version, kept in (("10.3", b"10.3+"), ("10.3", b"10.3++"), ("10.16", b"10.16+")):
        serialized(TensorRT(version), graph, (), PROFILES, effort=effort)
        assert (tmp_path / "timing.cache").read_bytes() == kept
    (tmp_path / "timing.cache").write_bytes(b"damaged")
    serialized(TensorRT("10.16"), graph, (), PROFILES, effort=effort)
    assert (tmp_path / "timing.cache").read_bytes() == b"10.16+"


def test_what_is_not_understood_is_said_with_its_nodes(graph: Path) -> None:
    errors = [parse_error("no such operator", "Odd", "block.3"), parse_error("empty", "", "")]
    with pytest.raises(EngineError) as caught:
        serialized(TensorRT(parse_errors=errors), graph, (), PROFILES)
    assert str(caught.value) == (
        "full.onnx is not understood: no such operator (node Odd block.3); empty"
    )


def test_what_the_builder_refuses_is_said_as_it_says(graph: Path) -> None:
    with pytest.raises(EngineError, match=r"no engine of full\.onnx: too large$"):
        serialized(TensorRT(build_error="too large"), graph, (), PROFILES)
