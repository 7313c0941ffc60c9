"""Checks a bundle: every byte against the manifest, then the gate once more."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from exporter.decoding import comparable
from exporter.emit import GATE, MANIFEST, SEAL, WORK
from exporter.engine_plans import ENGINES
from exporter.errors import UserError
from exporter.gate import measure
from exporter.manifest import GateResult, Manifest
from exporter.progress import Progress
from exporter.recipe_names import Limits
from exporter.runtime.operators import BUILT
from exporter.runtime.operators import FOLDER as PLUGINS
from exporter.runtime.settings import Settings
from exporter.tensor_files import sha256
from exporter.trajectory import Reference


@dataclass(frozen=True)
class Verdict:
    """What `verify` found; `damaged` names files with the reason."""

    files: int
    damaged: dict[str, str]
    unknown: list[str]  # files that the manifest does not list
    gate: GateResult | None  # None: not run, because files are damaged or there is none

    @property
    def sound(self) -> bool:
        return not self.damaged and (self.gate is None or self.gate.passed)


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle; UserError where there is none or it is not understood."""
    file = bundle / MANIFEST
    if not file.is_file():
        raise UserError(f"`{bundle}` has no {MANIFEST}", "Give the folder of a finished bundle")
    try:
        return Manifest.model_validate(json.loads(file.read_bytes()))
    except (ValueError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"`{file}` is damaged: {first}", "Build the bundle again") from None


def verify(bundle: Path, progress: Progress, operators: bool = True) -> Verdict:
    """Re-hash every file and run the gate again on the recorded prompts; `operators`: its own."""
    damaged = check_seal(bundle)
    if damaged:
        return Verdict(1, damaged, [], None)
    manifest = read_manifest(bundle)
    with progress.stage("hash", len(manifest.files)) as step:
        for file in manifest.files:
            if reason := _damage(bundle / file.path, file.bytes, file.sha256):
                damaged[file.path] = reason
            step()
    known = {file.path for file in manifest.files} | {MANIFEST, SEAL}
    gate = None
    if not damaged and manifest.gate is not None:
        reference = Reference.load(bundle / GATE)
        settings = comparable(Settings(**manifest.gated.model_dump()))
        limits = Limits(manifest.gate.largest_regret, manifest.gate.largest_kl)
        gate = measure(bundle, reference, settings, limits, progress, operators)
    return Verdict(len(manifest.files) + 2, damaged, _unknown(bundle, known), gate)


def check_seal(bundle: Path) -> dict[str, str]:
    """The manifest against its digest: a flipped byte in either is found."""
    manifest, seal = bundle / MANIFEST, bundle / SEAL
    if not manifest.is_file():
        raise UserError(f"`{bundle}` has no {MANIFEST}", "Give the folder of a finished bundle")
    if not seal.is_file():
        return {SEAL: "missing"}
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    if seal.read_bytes() != digest.encode() + b"\n":
        return {MANIFEST: f"does not have the digest that {SEAL} states, or {SEAL} is damaged"}
    return {}


def _damage(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != size:
        return f"{path.stat().st_size} bytes, {size} expected"
    return None if sha256(path) == digest else "content differs"


def _unknown(bundle: Path, known: set[str]) -> list[str]:
    found = (f.relative_to(bundle) for f in bundle.rglob("*") if f.is_file())
    ours = {WORK, "__pycache__"}
    built = {(PLUGINS, BUILT), (ENGINES,)}  # on this machine: by the loop, by build_engine.py
    return sorted(
        f.as_posix()
        for f in found
        if f.as_posix() not in known
        and not ours & {*f.parts}
        and not {f.parts[:2], f.parts[:1]} & built
    )
