"""The stage `engine`: builds the engines of a draft, in a process of their own.

Where a runtime takes engines that were built elsewhere they are built here, without a GPU. Builder
and weights take memory that torch has no use for any more, and a parser that ends its process does
not end the build.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from exporter.device.build_engine import MODULES, RECORD
from exporter.errors import UserError
from exporter.manifest import BuiltEngine, Engines, Manifest
from exporter.progress import Progress
from targets import Target

BUILDER = "build_engine.py"  # in a bundle, for engines of other graphs
EXTRA = "rtx"


def check_builder(target: Target) -> None:
    """Raises UserError where engines are to be built here and what builds them is missing."""
    if target.engine_built == "ahead-of-time":
        check_module(target.runtime)


def check_module(runtime: str) -> None:
    """Raises UserError where the module that builds engines of a runtime is missing."""
    module = MODULES[runtime]
    if find_spec(module) is None:
        raise UserError(
            f"The module `{module}` (TensorRT for RTX), which builds engines, is not installed",
            f"No GPU is needed: pip install {' '.join(requirements())}",
        )


def requirements() -> list[str]:
    """The packages of the extra, with their versions, as pip takes them."""
    stated = metadata.requires("dqexport") or []
    return [
        line.partition(";")[0].strip().replace(" ", "")
        for line in stated
        if f"extra == '{EXTRA}'" in line.replace('"', "'")
    ]


def copy_builder(draft: Path) -> None:
    """build_engine.py, byte for byte."""
    source = resources.files("exporter.device").joinpath(BUILDER)
    (draft / BUILDER).write_bytes(source.read_bytes())


def build_engines(
    draft: Path, engines: Engines, graphs: Sequence[str] | None, progress: Progress
) -> Engines:
    """Build engines of `graphs` (None: those of the defaults) below `draft`; what was built.

    `draft` must hold its manifest. Raises UserError with what parser or builder refused.
    """
    built = _run(draft, engines, graphs, progress)
    (draft / RECORD).unlink()  # the manifest tells; on a device it lists what is built there
    return engines.model_copy(update={"built": built})


def build_in_place(
    bundle: Path, manifest: Manifest, graphs: Sequence[str] | None, progress: Progress
) -> list[BuiltEngine]:
    """Build engines of a finished bundle; all that were built in it so, these among them.

    Engines that the bundle came with are sealed, and not built again: UserError.
    """
    engines = manifest.engines
    if engines is None:
        raise UserError(
            f"`{bundle}` is made for `{manifest.target}`, whose runtime has no engines",
            "Build it for a target that has some: `dqexport targets`",
        )
    known = [plan.graph for plan in engines.plans]
    wanted = graphs or [plan.graph for plan in engines.plans if plan.default]
    for name in wanted:
        if name not in known:
            raise UserError(f"There is no graph `{name}`", f"There are {', '.join(known)}")
    sealed = {one.graph: one for one in engines.built}
    for name in wanted:
        if name in sealed:
            raise UserError(
                f"`{bundle}` holds the engine of `{name}`, built by {sealed[name].version}",
                "Name another with --graph, or build the bundle again with --force",
            )
    check_module(engines.runtime)
    return _run(bundle, engines, wanted, progress)


def _run(
    folder: Path, engines: Engines, graphs: Sequence[str] | None, progress: Progress
) -> list[BuiltEngine]:
    """build_engine.py of the folder, in its own process; what engines.json lists afterwards."""
    count = len(graphs) if graphs else sum(plan.default for plan in engines.plans)
    builder = resources.files("exporter.device").joinpath(BUILDER)  # the bundle has a copy
    command = [sys.executable, "-I", "-B", str(builder), str(folder)]
    command += [part for name in graphs or () for part in ("--graph", name)]
    with progress.stage("engine", count) as step, TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
            assert child.stdout is not None
            for _ in child.stdout:  # a line an engine
                step()
        if child.returncode:
            errors.seek(0)
            said = errors.read().strip().removeprefix("error: ")
            raise UserError(
                f"Building an engine failed: {said or f'exit code {child.returncode}'}",
                "Try another recipe, or --target cuda, which runs the graphs as they are",
            )
    records = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return [BuiltEngine(**record) for record in records]
