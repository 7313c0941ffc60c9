"""A bundle as far as building its engines reads it: a manifest, small graphs, weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
from onnx import parser

from trt_plugins.build import ROOT, source_digest, source_files

GRAPH = """<ir_version: 10, opset_import: ["" : 24]>
g (int64[rows, S] ids, int64[W] window, float[3] bias) => (int64[W, S] out)
  <float[3] bias = {1, 2, 3}>
{ y = Gather(ids, window)
  out = Identity(y) }"""
PROFILES = [
    {"rows": (1, 1, 2), "S": (1, 16, 16), "W": (1, 8, 16)},
    {"rows": (1, 1, 2), "S": (17, 64, 64), "W": (1, 8, 64)},
]
GRAPHS = ("full", "full-sample", "cached")


def write_bundle(
    folder: Path, runtime: str = "tensorrt", sm: tuple[int, ...] = (87,), plugins: bool = False
) -> dict[str, Any]:
    """Write it; the manifest's section on engines. Decoding needs `full` and `cached`."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "weights.bin").write_bytes(b"weights")
    for name in GRAPHS:
        model = parser.parse_model(GRAPH.replace("g (", f"{name.replace('-', '_')} ("))
        onnx.save(model, folder / "graphs" / f"{name}.onnx")
    plans = [
        {"graph": n, "path": f"engines/{n}.plan", "default": n in ("full", "cached"),
         "profiles": PROFILES}
        for n in GRAPHS
    ]  # fmt: skip
    engines: dict[str, Any] = {"runtime": runtime, "sm": list(sm), "plans": plans, "built": []}
    if plugins:
        copy_sources(folder / "plugins")
        engines["plugins"] = source_digest(folder / "plugins")
    write_engines(folder, engines)
    return engines


def write_engines(folder: Path, engines: dict[str, Any] | None) -> None:
    """The manifest, with a section on engines."""
    (folder / "manifest.json").write_text(json.dumps({"engines": engines}))


def copy_sources(folder: Path) -> None:
    """The program that compiles the plugins, and one source: what they are made of is not read."""
    names = [name for name in source_files() if name.endswith((".py", "creators.cc"))]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
