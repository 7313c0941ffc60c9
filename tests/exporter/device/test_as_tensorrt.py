"""The whole way on a device, from a bundle's graphs to engines.

TensorRT for RTX stands in for TensorRT: it has the same parser, builder and plugin registry, and
needs no GPU. The GPU that engines are built for is stated; nothing runs on it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from exporter.device.build_error import EngineError
from exporter.device.build_plans import TIMING, build_engines
from exporter.device.bundle_files import digest
from exporter.device.this_gpu import Gpu
from exporter.quant_options import QuantOptions
from tests.plugin_harness import needs_plugins
from trt_plugins.build import find_nvcc

pytestmark = pytest.mark.trt

ROOT = Path(__file__).parents[3]
DECODE = DecodeOptions(gen_length=16, steps=2, block_length=8)
GPU = Gpu("stand-in", 86, shares_memory=True)
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from exporter.device.rtx_link import run_again
if (code := run_again()) is not None:
    sys.exit(code)
import tensorrt_rtx_bindings
from exporter.device.build_plans import build_engines
from exporter.device.this_gpu import Gpu
say = lambda record: print(record["path"])
build_engines(Path(sys.argv[2]), tensorrt_rtx_bindings, None, say, Gpu("stand-in", 86, True))
"""


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")


def bundle(folder: Path, recipe: str, quant: QuantOptions) -> Path:
    """A bundle of the reference model for desktop GPUs, whose engines are built on the device."""
    options = BuildOptions(recipe, quant=quant, decode=DECODE, gate_prompts=1, gate=False)
    build(None, "tensorrt", folder, options)
    return folder


def change_engines(folder: Path, **changed: Any) -> dict[str, Any]:
    """Other values in the manifest's section on engines."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engines"] |= changed
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return dict(manifest["engines"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # timings mean nothing to that builder
def test_standard_operators_become_engines_for_the_gpu_at_hand(trt: Any, tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", "w4a16-rtn", QuantOptions())
    names: list[str] = []
    records = build_engines(folder, trt, None, lambda one: names.append(one["graph"]), GPU)
    assert names == ["full", "cached"]
    for record in records:
        assert (record["runtime"], record["sm"], record["plugins"]) == ("tensorrt", [86], None)
        assert record["sha256"] == digest(folder / record["path"])
    assert (folder / TIMING).is_file()
    assert build_engines(folder, trt, None, lambda _: None, GPU) == records
    (folder / "graphs" / "cached.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"cached\.onnx is not understood"):
        build_engines(folder, trt, ["cached"], lambda _: None, GPU)
    assert digest(folder / "engines" / "cached.plan") == records[1]["sha256"]


@needs_plugins
def test_operators_of_ours_become_plugins(trt: Any, tmp_path: Path) -> None:
    """First as on a device, then ahead of time by the bundle's own program. Without nvcc there is
    no library for a GPU, so the second is all that can be tried.
    """
    folder = bundle(tmp_path / "b", "w4a8-rtn", QuantOptions(kv_bits=8))
    plugins = change_engines(folder, sm=[86])["plugins"]
    assert plugins is not None
    if find_nvcc() is not None:
        command = [sys.executable, "-c", PROGRAM, str(ROOT), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        check(folder, done.stdout, "tensorrt", plugins)
        assert "--dynamicPlugins=" in done.stderr
        again = subprocess.run(command, capture_output=True, text=True, check=True)
        assert again.stdout == done.stdout
        assert again.stderr.count("is there, built of the same") == 2
    change_engines(folder, runtime="tensorrt-rtx")
    own = [sys.executable, "-I", str(folder / "build_engine.py")]
    done = subprocess.run(own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(folder, done.stdout, "tensorrt-rtx", plugins)
    libraries = [path.name for path in folder.glob("plugins/built/*")]
    assert len(libraries) == (find_nvcc() is not None)


def check(folder: Path, out: str, runtime: str, plugins: str) -> None:
    """Both engines are on record, and name the operators: a body of standard ones would not."""
    assert out.split() == ["engines/full.plan", "engines/cached.plan"]
    for record in json.loads((folder / "engines" / "engines.json").read_text()):
        assert (record["runtime"], record["sm"]) == (runtime, [86])
        assert record["plugins"] == plugins
        assert b"DqxGatedW4A8" in (folder / record["path"]).read_bytes()
    assert b"DqxCachedAttention" in (folder / "engines" / "cached.plan").read_bytes()
