"""Puts a bundle together in a draft folder, and publishes it: the manifest appears last."""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from exporter.engine_plans import ENGINES
from exporter.engines import BUILDER
from exporter.graph_kind import GRAPHS, GraphKind
from exporter.manifest import (
    Calibration,
    Decode,
    EnginePlan,
    Engines,
    File,
    GraphFile,
    Manifest,
    ModelFacts,
    PassRecord,
    Role,
    Runtime,
    significant,
)
from exporter.operator_use import OperatorUse
from exporter.prompts import Prompts
from exporter.quantize import Quantized
from exporter.recipes import Recipe
from exporter.runtime.operators import FOLDER as PLUGINS
from exporter.runtime.settings import Settings
from exporter.tensor_files import sha256, write_atomically
from exporter.tokenizer import FILE as TOKENIZER
from exporter.tokenizer import read_tokenizer
from exporter.work import to_json
from ort_ops.build import ROOT as OPS_ROOT
from ort_ops.build import BuildError, host_library, source_files
from ort_ops.build_cuda import source_files as cuda_source_files
from passes.calibrate.states import CalibrationSet
from passes.numerics import WeightGrid
from passes.weights.rtn import Rtn
from targets import Target
from trt_plugins.build import ROOT as TRT_ROOT
from trt_plugins.build import source_digest
from trt_plugins.build import source_files as trt_source_files

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
MANIFEST, SEAL, GATE = "manifest.json", "manifest.sha256", "gate.safetensors"
WORK = ".work"  # folder in OUT of a build that goes on


def copy_loop(draft: Path) -> None:
    """The decode loop: decode.py on top, the rest as the package `runtime`, byte for byte."""
    (draft / "runtime").mkdir()
    for source in sorted(resources.files("exporter.runtime").iterdir(), key=lambda f: f.name):
        if source.name.endswith(".py"):
            folder = draft if source.name == "decode.py" else draft / "runtime"
            (folder / source.name).write_bytes(source.read_bytes())


def copy_tokenizer(checkpoint: Path, draft: Path) -> None:
    """Tokenizer and chat template, where the checkpoint has them."""
    (draft / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, draft / "tokenizer" / name)
    made = None if (checkpoint / TOKENIZER).is_file() else read_tokenizer(checkpoint)
    if made is not None:  # from vocabulary and merges
        (draft / "tokenizer" / TOKENIZER).write_text(made.to_str(), encoding="utf-8")


def copy_operators(draft: Path) -> None:
    """The operators' library for this kind of machine, and the sources for any other.

    Without a compiler the sources alone; the loop builds them, or runs standard operators.
    """
    folder = draft / PLUGINS
    for source in source_files():
        place = folder / "ort_ops" / source
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(OPS_ROOT / source, place)
    try:
        host_library(folder)
    except BuildError as error:
        log.warning("the operators are not built, and run slower until they are: %s", error)


def copy_plugins(draft: Path) -> str:
    """The sources of TensorRT's plugins, and what compiles them; their digest (`engines.plugins`).

    Libraries of them are built below the copy: for a GPU on its device, or with the engines.
    """
    for source in trt_source_files():
        place = draft / PLUGINS / source
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TRT_ROOT / source, place)
    return source_digest(draft / PLUGINS)


def copy_cuda_sources(draft: Path) -> None:
    """The sources of the operators of the CUDA provider: the loop builds them on the device."""
    for source in cuda_source_files():
        place = draft / PLUGINS / "ort_ops" / source
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(OPS_ROOT / source, place)


def copy_kernels(draft: Path, use: OperatorUse) -> str | None:
    """What runs the operators of ours; the digest of their sources where these are plugins."""
    if use.plugins:
        return copy_plugins(draft)
    if use.gpu:
        copy_cuda_sources(draft)
    else:
        copy_operators(draft)
    return None


def describe(
    model: ModelFacts,
    recipe: Recipe,
    target: Target,
    settings: Settings,
    accuracy_level: int,
    kinds: Sequence[GraphKind],
    operators: dict[str, int],
    cache_bytes: int,
    calibration: Calibration | None,
    passes: list[PassRecord],
) -> Manifest:
    """The manifest before gate and files are known."""
    graphs = [
        GraphFile(
            name=kind.name,
            path=f"{GRAPHS}/{kind.name}.onnx",
            guided=kind.guided,
            outputs=kind.outputs,
            cached=kind.cached,
        )
        for kind in kinds
    ]
    providers = list(target.providers) or ["CPUExecutionProvider"]  # of a runtime with engines
    runtime = Runtime(name="onnxruntime", providers=providers, accuracy_level=accuracy_level)
    return Manifest(
        made_by=f"dqexport {version('dqexport')}",
        recipe=recipe.name,
        model=model,
        target=target.name,
        compute=recipe.compute,
        decode=Decode(**asdict(settings)),
        runtime=runtime,
        graphs=graphs,
        operators=operators,
        cache_bytes=cache_bytes,
        calibration=calibration,
        passes=passes,
        gate=None,
        files=[],
    )


def describe_engines(
    target: Target, recipe: Recipe, batch: int, plans: list[EnginePlan], plugins: str | None
) -> Engines:
    """The manifest's section on engines before any is built; `plugins`: digest of their sources."""
    assert target.runtime != "onnxruntime"
    assert target.sm is not None
    return Engines(
        runtime=target.runtime,
        sm=list(target.sm),
        precision=recipe.compute,
        batch=batch,
        plans=plans,
        plugins=plugins,
    )


def describe_calibration(
    calibration: CalibrationSet | None, prompts: Prompts, rollout: Settings
) -> Calibration | None:
    """What the passes were calibrated on."""
    if calibration is None:
        return None
    return Calibration(
        prompts=len(prompts.calibration),
        source=prompts.source,
        settings=Decode(**asdict(rollout)),
        states=calibration.provenance,
        counts={name: significant(value) for name, value in sorted(calibration.counts.items())},
    )


def describe_passes(
    calibration: CalibrationSet | None, quantized: Quantized | None, recipe: Recipe
) -> list[PassRecord]:
    """Every pass that ran, in order, with its settings and numbers."""
    records: list[PassRecord] = []
    grids = (recipe.rotation, recipe.weights, recipe.activation, recipe.attention)
    records += [PassRecord(step=repr(g), where="model", stats={}) for g in grids if g is not None]
    for index, group in sorted(recipe.high):
        records.append(PassRecord(step="8-bit weights", where=f"block {index}, {group}", stats={}))
    if calibration is not None:
        steps = [step for step in (recipe.draw, recipe.weigh) if step is not None]
        records += [PassRecord(step=repr(s), where="calibration", stats={}) for s in steps]
    for index in range(quantized.layers if quantized else 0):
        assert quantized is not None
        for fact in quantized.passes(index):
            stats = {name: significant(value) for name, value in fact["stats"].items()}
            records.append(PassRecord(step=fact["step"], where=f"block {index}", stats=stats))
    if recipe.embed_bits < 16:
        step = f"{Rtn()!r} on {WeightGrid(recipe.embed_bits)!r}"
        records.append(PassRecord(step=step, where="embedding", stats={}))
    if recipe.head_bits < 16:
        head = f"{Rtn()!r} on {WeightGrid(recipe.head_bits, recipe.head_group)!r}"
        records.append(PassRecord(step=head, where="head", stats={}))
    return records


def list_files(folder: Path) -> list[File]:
    """Every file below `folder` but the manifest and its seal, sorted by path."""
    found = [f for f in folder.rglob("*") if f.is_file() and f.name not in (MANIFEST, SEAL)]
    names = sorted(file.relative_to(folder).as_posix() for file in found)
    return [describe_file(folder, name) for name in names]


def describe_file(folder: Path, name: str) -> File:
    """The manifest's entry for one file of a bundle."""
    file = folder / name
    return File(path=name, role=_role(name), bytes=file.stat().st_size, sha256=sha256(file))


def _role(path: str) -> Role:
    if path.startswith(f"{PLUGINS}/"):
        return "plugin"
    folder, _, name = path.rpartition("/")
    by_folder: dict[str, Role] = {"runtime": "loop", "tokenizer": "tokenizer", ENGINES: "engine"}
    by_name: dict[str, Role] = {
        "decode.py": "loop",
        BUILDER: "loop",
        "weights.bin": "weights",
        GATE: "reference",
        "report.html": "report",
        "README.md": "readme",
    }
    return by_folder.get(folder) or by_name.get(name) or "graph"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """manifest.json, and its digest beside it so that a damaged manifest is found too."""
    content = to_json(manifest.model_dump(mode="json"))
    write_atomically(folder / MANIFEST, [content])
    write_atomically(folder / SEAL, [hashlib.sha256(content).hexdigest().encode() + b"\n"])


def publish(draft: Path, bundle: Path) -> None:
    """Move a finished draft into `bundle`, in place of what was there; the manifest goes last.

    Until then `.work` in it says whose folder this is, so that a build that is killed on the way
    can be run again.
    """
    (bundle / WORK).mkdir(parents=True, exist_ok=True)
    (bundle / MANIFEST).unlink(missing_ok=True)
    for old in ("graphs", "runtime", "tokenizer", PLUGINS, ENGINES):
        shutil.rmtree(bundle / old, ignore_errors=True)
    entries = sorted(draft.iterdir(), key=lambda e: (e.name == MANIFEST, e.name))
    for entry in entries:
        _move(entry, bundle / entry.name, bundle / WORK)
    with suppress(OSError):  # it holds the stages, when these are not kept elsewhere
        (bundle / WORK).rmdir()


def _move(entry: Path, place: Path, near: Path) -> None:
    """Move a file or folder; from another disk by way of a copy in the folder `near` the place."""
    try:
        os.replace(entry, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = near / f"{entry.name}.arriving"
        shutil.rmtree(copy, ignore_errors=True)  # of an earlier try
        shutil.move(entry, copy)
        os.replace(copy, place)
