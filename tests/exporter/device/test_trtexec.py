"""The line for NVIDIA's own tool says what the builder is told."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from exporter.device.build_network import Effort, serialized
from exporter.device.trtexec import trtexec
from tests.engine_bundle import PROFILES, write_bundle
from tests.stand_in_builder import TensorRT

PLAN = {"graph": "full", "path": "engines/full.plan", "profiles": PROFILES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "a bundle")
    return tmp_path / "a bundle"


def options(line: str) -> list[tuple[str, str]]:
    """Options and values in order; the shell takes them apart."""
    return [(o.partition("=")[0], o.partition("=")[2]) for o in shlex.split(line)[1:]]


def line(folder: Path, **changed: Any) -> str:
    arguments = {"plan": PLAN, "runtime": "tensorrt", "sm": (), "library": None,
                 "effort": Effort(), "version": "10.16.2"}  # fmt: skip
    return trtexec(folder, **{**arguments, **changed})


def test_its_profiles_are_those_of_the_builder(folder: Path) -> None:
    """Each with its shapes behind it, in the order that the tool reads them in."""
    trt = TensorRT()
    serialized(trt, folder / "graphs" / "full.onnx", (), PROFILES)
    found = [(o, v) for o, v in options(line(folder)) if "Shapes" in o or o == "--profile"]
    for number, profile in enumerate(trt.configs[0].profiles):
        head, *shapes = found[4 * number : 4 * number + 4]
        assert head == ("--profile", str(number))
        assert [option for option, _ in shapes] == ["--minShapes", "--optShapes", "--maxShapes"]
        for which, (_, value) in enumerate(shapes):
            read = dict(part.split(":") for part in value.split(","))
            assert {n: [int(size) for size in s.split("x")] for n, s in read.items()} == {
                name: ranges[which] for name, ranges in profile.items()
            }
    assert len(found) == 8


@pytest.mark.parametrize(
    ("version", "typed"), [("10.3.0", True), ("10.16.2", True), ("11.4.0", False), (None, True)]
)
def test_strong_types_are_asked_for_where_they_are_not_a_matter_of_course(
    folder: Path, version: str | None, typed: bool
) -> None:
    assert (("--stronglyTyped", "") in options(line(folder, version=version))) == typed


def test_limits_files_and_plugins(folder: Path) -> None:
    effort = Effort(5, 1024, Path("t.cache"))
    found = options(line(folder, effort=effort, library=Path("l.so")))
    assert dict(found).items() >= {
        "--onnx": f"{folder}/graphs/full.onnx", "--saveEngine": f"{folder}/engines/full.plan",
        "--builderOptimizationLevel": "5", "--memPoolSize": "workspace:1024",
        "--timingCacheFile": "t.cache", "--dynamicPlugins": "l.so",
        "--preview": "+aliasedPluginIO1003", "--skipInference": "",
    }.items()  # fmt: skip


def test_ahead_of_time_another_tool_is_told_the_gpus(folder: Path) -> None:
    text = line(folder, runtime="tensorrt-rtx", sm=(86, 89), version="1.7.1.116")
    assert shlex.split(text)[0] == "tensorrt_rtx"
    assert ("--computeCapabilities", "86,89") in options(text)
    assert ("--stronglyTyped", "") not in options(text)
