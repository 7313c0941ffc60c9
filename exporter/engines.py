"""The stage `engine`: builds the engines of a draft, in a process of their own.

Where a runtime takes engines that were built elsewhere they are built here, without a GPU. Builder
and weights take memory that torch has no use for any more, and a parser that ends its process does
not end the build.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path

from exporter.device.build_command import MODULES, by_hand
from exporter.device.build_error import EngineError
from exporter.device.build_network import Effort
from exporter.device.build_records import RECORD
from exporter.errors import UserError
from exporter.manifest import BuiltEngine, Engines, Manifest
from exporter.progress import Progress
from targets import Target
from trt_plugins.build import BuildError, host_command

log = logging.getLogger(__name__)

BUILDER = "build_engine.py"  # in a bundle, for engines of other graphs
LOOP = "runtime"  # folder of a bundle: what is not a program of its own
EXTRA = "rtx"
PROGRAM = (  # the bundle has a copy; this one needs no trust in it
    "import sys, pathlib; sys.path.insert(0, sys.argv[1]); "
    "from exporter.device.build_command import main; "
    "sys.exit(main(pathlib.Path(sys.argv[2]), sys.argv[3:]))"
)
OTHERWISE = "Try another recipe, or --target cuda, which runs the graphs as they are"


@dataclass(frozen=True)
class EngineOptions:
    """Everything that `dqexport engine` can be told beside the bundle."""

    graphs: tuple[str, ...] | None = None  # None: those that the bundle's defaults need
    force: bool = False  # build again what is there
    level: int | None = None  # of the builder; None: its own
    workspace_mib: int | None = None  # None: what the GPU has


def check_builder(target: Target, plugins: bool = False) -> None:
    """Raises UserError where engines are to be built here and what builds them is missing.

    `plugins`: graphs have nodes of ours.
    """
    if target.engine_built != "ahead-of-time":
        return
    check_module(target.runtime)
    if plugins:
        try:
            host_command()
        except BuildError as error:
            what, _, hint = str(error).partition("\n")
            raise UserError(
                f"The plugins of `{target.name}` cannot be compiled: {what}",
                f"{'; '.join(hint.splitlines())}; or leave them out: --no-operators",
            ) from None


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
    """build_engine.py on top, what it is made of beside the loop, byte for byte."""
    (draft / LOOP).mkdir(exist_ok=True)
    for source in sorted(resources.files("exporter.device").iterdir(), key=lambda f: f.name):
        if source.name.endswith(".py") and source.name != "__init__.py":
            folder = draft if source.name == BUILDER else draft / LOOP
            (folder / source.name).write_bytes(source.read_bytes())


def build_engines(
    draft: Path, engines: Engines, graphs: Sequence[str] | None, progress: Progress
) -> Engines:
    """Build engines of `graphs` (None: those of the defaults) below `draft`; what was built.

    `draft` must hold its manifest. Raises UserError with what parser or builder refused.
    """
    options = EngineOptions(tuple(graphs) if graphs else None)
    count = len(graphs) if graphs else sum(plan.default for plan in engines.plans)
    with progress.stage("engine", count) as step:
        built = _run(draft, engines, options, _to_log, step)
    (draft / RECORD).unlink()  # the manifest tells; on a device it lists what is built there
    untimed = [one.model_copy(update={"seconds": None}) for one in built]  # equal in every build
    return engines.model_copy(update={"built": untimed})


def build_in_place(bundle: Path, manifest: Manifest, options: EngineOptions) -> list[BuiltEngine]:
    """Build engines of a finished bundle, for the GPU at hand or ahead of time, as its runtime is.

    Those that are there, built of the same, stay. Returns what there is of the graphs asked for.
    What is done is said on stderr. Raises UserError.
    """
    engines = _engines(bundle, manifest)
    known = [plan.graph for plan in engines.plans]
    for name in options.graphs or ():
        if name not in known:
            raise UserError(f"There is no graph `{name}`", f"There are {', '.join(known)}")
    if engines.runtime == "tensorrt-rtx":
        check_module(engines.runtime)
    return _run(bundle, engines, options, _say, lambda: None)


def commands(bundle: Path, manifest: Manifest, options: EngineOptions) -> list[str]:
    """Commands of NVIDIA's own tool that build the same engines. Raises UserError."""
    engines = _engines(bundle, manifest).model_dump(mode="json")
    effort = Effort(options.level, options.workspace_mib)
    try:
        return by_hand(bundle, engines, options.graphs, effort)
    except EngineError as error:
        raise UserError(_sentence(str(error)), error.hint) from error


def _engines(bundle: Path, manifest: Manifest) -> Engines:
    if manifest.engines is None:
        raise UserError(
            f"`{bundle}` is made for `{manifest.target}`, whose runtime has no engines",
            "Build it for a target that has some: `dqexport targets`",
        )
    return manifest.engines


def _run(
    folder: Path,
    engines: Engines,
    options: EngineOptions,
    say: Callable[[str], None],
    step: Callable[[], None],
) -> list[BuiltEngine]:
    """build_engine.py of the folder, in its own process; the records of what it names.

    `say` gets its lines for people; `step` is called after each engine.
    """
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-I", "-B", "-c", PROGRAM, root, str(folder), *_flags(options)]
    paths: list[str] = []
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        for line in map(str.rstrip, child.stdout):
            if line.startswith("engines/") and line.endswith(".plan"):
                paths.append(line)
                step()
                continue
            said.append(line)
            if not any(known.startswith("error: ") for known in said):
                say(line)
    if child.returncode:
        raise _failure(child.returncode, said)
    record = folder / RECORD
    here = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    known = {one.path: one for one in [*engines.built, *(BuiltEngine(**one) for one in here)]}
    return [known[path] for path in paths]


def _flags(options: EngineOptions) -> list[str]:
    return [
        *(part for name in options.graphs or () for part in ("--graph", name)),
        *(["--force"] if options.force else []),
        *(["--level", str(options.level)] if options.level is not None else []),
        *(
            ["--workspace-mib", str(options.workspace_mib)]
            if options.workspace_mib is not None
            else []
        ),
    ]


def _failure(code: int, said: Sequence[str]) -> UserError:
    """What a process that failed said: its error, and before it what plugins refused."""
    text = "\n".join(said)
    _, found, error = text.rpartition("error: ") if said else ("", "", "")
    message, _, hint = error.partition("\nhint: ")
    refused = [line for line in said if line.startswith("Dqx")]
    reason = "; ".join([*refused, message if found else f"exit code {code}"])
    return UserError(f"Building an engine failed: {reason}", hint or OTHERWISE)


def _to_log(line: str) -> None:
    if line.startswith("warning: "):
        log.warning("%s", line.removeprefix("warning: "))
    else:
        log.info("%s", line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
