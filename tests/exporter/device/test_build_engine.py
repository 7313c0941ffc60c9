"""build_engine.py without TensorRT: what it chooses, what it says, and that it stands alone."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.device import build_engine
from exporter.device.build_engine import EngineError, choose, digest, shape_of, why_refused

FILE = Path(build_engine.__file__)
PLANS = [
    {"graph": "full", "default": True},
    {"graph": "full-sample", "default": False},
    {"graph": "cached", "default": True},
]


def test_it_imports_the_standard_library_alone() -> None:
    for node in ast.walk(ast.parse(FILE.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            names = [node.module or ""]
        assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_defaults_or_what_is_named_in_that_order() -> None:
    assert [plan["graph"] for plan in choose(PLANS, None)] == ["full", "cached"]
    named = ["cached", "full-sample"]
    assert [plan["graph"] for plan in choose(PLANS, named)] == named
    with pytest.raises(EngineError, match=r"'half'.* full, full-sample, cached"):
        choose(PLANS, ["half"])


def test_engines_that_a_bundle_came_with_are_not_built_over(tmp_path: Path) -> None:
    engines = {"plans": PLANS, "built": [{"graph": "cached"}]}
    (tmp_path / "manifest.json").write_text(json.dumps({"engines": engines}))
    with pytest.raises(EngineError, match="came with the engine of cached"):
        build_engine.build_engines(tmp_path, None, None, lambda _: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


RECORD = {
    "graph": "full", "path": "engines/full.plan", "sha256": "e", "graph_sha256": "g",
    "weights_sha256": "w", "runtime": "tensorrt-rtx", "version": "1.7.1.116", "sm": [86, 89],
}  # fmt: skip
HERE = ("tensorrt-rtx", "1.7.1.116", 89, "g", "w")


@pytest.mark.parametrize(
    ("place", "other", "says"),
    [
        (0, "tensorrt", "by tensorrt-rtx 1.7.1.116, here is tensorrt 1.7.1.116"),
        (1, "1.8.0.1", "by tensorrt-rtx 1.7.1.116, here is tensorrt-rtx 1.8.0.1"),
        (2, 120, "for SM 86/89, here is SM 120"),
        (3, "h", "another graph than graphs/full.onnx"),
        (4, "h", "other weights than graphs/weights.bin"),
    ],
)
def test_an_engine_of_something_else_is_refused_with_the_reason(
    place: int, other: object, says: str
) -> None:
    assert why_refused(RECORD, *HERE) is None
    here = [*HERE]
    here[place] = other
    reason = why_refused(RECORD, *here)  # type: ignore[arg-type]
    assert reason is not None
    assert reason.startswith("engines/full.plan was built ") and says in reason


@dataclass(frozen=True)
class Tensor:
    """An input of a network, as far as a profile reads it."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]

    def get_dimension_name(self, axis: int) -> str:
        return self.axes[axis]


def test_variable_axes_take_their_spans() -> None:
    tensor, spans = Tensor((-1, 3, -1), ("rows", "", "Q")), {"rows": (1, 2, 4), "Q": (5, 6, 7)}
    assert [shape_of(tensor, spans, n) for n in range(3)] == [[1, 3, 5], [2, 3, 6], [4, 3, 7]]


def test_a_digest_is_that_of_all_bytes(tmp_path: Path) -> None:
    import hashlib

    content = bytes(range(256)) * (build_engine.CHUNK // 256 + 1)  # more than it reads at once
    (tmp_path / "f").write_bytes(content)
    assert digest(tmp_path / "f") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (None, "has no manifest.json"),
        ({"engines": {"runtime": "tensorrt-rtx"}}, "tensorrt_rtx_bindings"),
    ],
)
def test_what_is_missing_is_said_in_a_line(
    tmp_path: Path, manifest: dict[str, object] | None, says: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    command = [sys.executable, "-I", "-S", str(FILE), str(tmp_path)]  # -S: no packages at all
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and says in line
