"""Puts a bundle together in a draft folder, and publishes it: the manifest appears last."""

import hashlib
import os
import shutil
from importlib import resources
from pathlib import Path

from exporter.manifest import File, Manifest, Role
from exporter.tensor_files import sha256, write_atomically
from exporter.work import to_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
MANIFEST, SEAL = "manifest.json", "manifest.sha256"


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


def list_files(folder: Path) -> list[File]:
    """Every file below `folder` but the manifest and its seal, sorted by path."""
    found = [f for f in folder.rglob("*") if f.is_file() and f.name not in (MANIFEST, SEAL)]
    names = sorted(f.relative_to(folder).as_posix() for f in found)
    return [
        File(
            path=name,
            role=_role(name),
            bytes=(folder / name).stat().st_size,
            sha256=sha256(folder / name),
        )
        for name in names
    ]


def _role(path: str) -> Role:
    folder, _, name = path.rpartition("/")
    by_folder: dict[str, Role] = {"runtime": "loop", "tokenizer": "tokenizer"}
    by_name: dict[str, Role] = {
        "decode.py": "loop",
        "weights.bin": "weights",
        "gate.safetensors": "gate",
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
    """Move a finished draft into `bundle`, in place of what was there; the manifest goes last."""
    (bundle / MANIFEST).unlink(missing_ok=True)
    for old in ("graphs", "runtime", "tokenizer"):
        shutil.rmtree(bundle / old, ignore_errors=True)
    entries = sorted(draft.iterdir(), key=lambda e: (e.name == MANIFEST, e.name))
    for entry in entries:
        os.replace(entry, bundle / entry.name)
