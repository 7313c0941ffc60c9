"""A checkpoint folder in its upstream layout: checked before any work, read tensor by tensor."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from exporter.configuration import read_configuration, read_json
from exporter.errors import UserError
from exporter.families import Family, Spec, block_shapes, model_shapes
from exporter.progress import Progress
from exporter.tensor_files import Entry, read_header, sha256, write_atomically
from exporter.work import Work

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Tensors have our names (`q`, `gate` …, see families.py)."""

    folder: Path
    family: Family
    spec: Spec
    entries: dict[str, Entry]  # `embed`, `head`, `0.q`, … -> where it lies

    def tensor(self, name: str, block: int | None = None, device: str = "cpu") -> torch.Tensor:
        """One tensor in fp32. A tied head is the embedding."""
        stored = self.entries[_key(name, block)].read()
        return stored.to(device).float()  # in this order: half of the bytes go over the bus

    def rows(self, name: str, count: int) -> Iterator[torch.Tensor]:
        """The rows of a matrix outside the blocks, `count` at a time, in fp32."""
        entry = self.entries[name]
        for part in entry.parts(count * entry.shape[1]):
            yield part.reshape(-1, entry.shape[1]).float()

    def gather(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` (any shape) of a matrix outside the blocks, in fp32; reads only these."""
        wanted, places = torch.unique(ids, return_inverse=True)
        entry = self.entries[name]
        return entry.read_rows(wanted.tolist()).float()[places]

    def block(self, index: int, device: str = "cpu") -> dict[str, torch.Tensor]:
        """All tensors of one block in fp32, by our names."""
        return {name: self.tensor(name, index, device) for name in block_shapes(self.spec, index)}

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted by name."""
        return sorted({entry.file for entry in self.entries.values()})

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        places = {(e.file, e.start): e.size // e.dtype.itemsize for e in self.entries.values()}
        return sum(places.values())

    def fingerprint(self) -> str:
        """Digest of the configuration and of the weight files' names, sizes and times: cheap."""
        stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self.files]
        return hashlib.sha256(repr((self.spec, stats)).encode()).hexdigest()

    def digest(self) -> str:
        """Digest of the facts and of all weight bytes. Raises UserError on NaN or infinity."""
        for key, entry in self.entries.items():
            bad = sum(int((~torch.isfinite(part)).sum()) for part in entry.parts(1 << 22))
            if bad:
                raise UserError(
                    f"`{entry.file}`: tensor `{key}` holds {bad} values that are NaN or infinite",
                    "The checkpoint is damaged: download it again",
                )
        parts = [sha256(file) for file in self.files]
        return hashlib.sha256(repr((self.spec, parts)).encode()).hexdigest()


def check_weights(checkpoint: Checkpoint, work: Work, progress: Progress) -> str:
    """The checkpoint's digest; every value is looked at, once in the life of a work folder."""
    file = work.stage("checkpoint", checkpoint.fingerprint()) / "digest"
    if not file.is_file():
        with progress.stage("check weights", 1) as step:
            write_atomically(file, [checkpoint.digest().encode()])
            step()
    return file.read_text()


def _key(name: str, block: int | None) -> str:
    return name if block is None else f"{block}.{name}"


def open_checkpoint(
    folder: Path,
    mask_id: int | None = None,
    eot_id: int | None = None,
    block_length: int | None = None,
    family_name: str | None = None,
) -> Checkpoint:
    """Open `folder`, checking configuration, names and shapes, but no weight values.

    `mask_id`, `eot_id` fill in what some upstream configurations do not carry; `block_length` is
    that of the mask of block-causal attention, where it is to be another; `family_name` is for
    models whose configuration does not tell their family. Raises UserError.
    """
    if not folder.is_dir():
        raise UserError(
            f"No checkpoint folder `{folder}`", "Give the folder that holds config.json"
        )
    family, spec = read_configuration(folder, mask_id, eot_id, block_length, family_name)
    found = _find_tensors(folder)
    return Checkpoint(folder, family, spec, _match(folder, family, spec, found))


def _find_tensors(folder: Path) -> dict[str, Entry]:
    """Upstream name -> entry, from the index of a sharded checkpoint or from its one file."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict):
            raise UserError(f"`{index}` has no table weight_map", "Download it again")
        bad = [n for n in table.values() if not isinstance(n, str) or Path(n).name != n]
        if bad:
            raise UserError(
                f"`{index}` names {bad[0]!r}, which is not a file name", "Download it again"
            )
        files = [folder / name for name in sorted(set(table.values()))]
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"`{index}` names `{file.name}`, which is not there",
                    "Download the missing shard",
                )
    if not files:
        pickled = sorted(
            p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)
        )
        seen = f" (only {', '.join(pickled)}, which is pickle and never opened)" if pickled else ""
        raise UserError(
            f"`{folder}` holds no .safetensors weights{seen}",
            "Convert the checkpoint to safetensors upstream",
        )
    found: dict[str, Entry] = {}
    for file in files:
        found |= read_header(file)
    return found


def _match(folder: Path, family: Family, spec: Spec, found: dict[str, Entry]) -> dict[str, Entry]:
    shapes = model_shapes(spec)
    sharing: dict[str, list[str]] = {}  # upstream name -> ours
    for key in shapes:
        block, _, name = key.rpartition(".")
        sharing.setdefault(family.upstream_name(block, name), []).append(key)
    entries: dict[str, Entry] = {}
    for upstream, keys in sharing.items():
        rows = sum(shapes[key][0] for key in keys)
        entry = _checked(folder, upstream, (rows, *shapes[keys[0]][1:]), found)
        for key in keys:
            entries[key], entry = entry.split(shapes[key][0])
    if spec.tied:
        entries["head"] = entries["embed"]
    return entries


def _checked(folder: Path, upstream: str, shape: tuple[int, ...], found: dict[str, Entry]) -> Entry:
    entry = found.get(upstream)
    if entry is None:
        raise UserError(
            f"`{folder}` lacks the tensor `{upstream}`",
            "The checkpoint is incomplete, or its config.json is of another model",
        )
    if entry.shape != shape:
        raise UserError(
            f"`{upstream}` has shape {list(entry.shape)}, config.json asks for {list(shape)}",
            "Check that config.json and weights are of the same model",
        )
    if entry.dtype not in FLOATS:
        raise UserError(
            f"`{upstream}` is stored as {entry.dtype}, not as a float",
            "Use the float checkpoint, not a quantized one",
        )
    return entry
