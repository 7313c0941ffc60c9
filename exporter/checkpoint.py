"""A checkpoint folder in its upstream layout: checked before any work, read tensor by tensor."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from exporter.errors import UserError
from exporter.families import FAMILIES, Family, Spec
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

    def tensor(self, name: str, block: int | None = None) -> torch.Tensor:
        """One tensor in fp32. A tied head is the embedding."""
        return self.entries[_key(name, block)].read().float()

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

    def block(self, index: int) -> dict[str, torch.Tensor]:
        """All tensors of one block in fp32, by our names."""
        return {name: self.tensor(name, index) for name in block_shapes(self.spec)}

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


def block_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Our names and shapes of one block's tensors; linears are (out, in)."""
    d, q, kv = spec.width, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "q": (q, d),
        "k": (kv, d),
        "v": (kv, d),
        "o": (d, q),
        "mlp_norm": (d,),
        "gate": (spec.mlp_width, d),
        "up": (spec.mlp_width, d),
        "down": (d, spec.mlp_width),
    }
    if spec.qkv_bias:
        shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if spec.qk_norm:
        shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    return shapes


def model_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Our keys and shapes of all tensors of a model."""
    outer = {"embed": (spec.vocab_size, spec.width), "final_norm": (spec.width,)}
    if not spec.tied:
        outer["head"] = (spec.vocab_size, spec.width)
    inner = block_shapes(spec)
    blocks = {f"{i}.{name}": shape for i in range(spec.layers) for name, shape in inner.items()}
    return {**outer, **blocks}


def open_checkpoint(
    folder: Path, mask_id: int | None = None, eot_id: int | None = None
) -> Checkpoint:
    """Open `folder`, checking configuration, names and shapes, but no weight values.

    `mask_id`, `eot_id` fill in what some upstream configurations do not carry. Raises UserError.
    """
    if not folder.is_dir():
        raise UserError(
            f"No checkpoint folder `{folder}`", "Give the folder that holds config.json"
        )
    config = _read_json(folder / "config.json")
    family = _family(folder, config)
    spec = _spec(folder, family, config, mask_id, eot_id)
    found = _find_tensors(folder)
    return Checkpoint(folder, family, spec, _match(folder, family, spec, found))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"`{file.parent}` has no {file.name}", "Give a folder in the Hugging Face layout"
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"`{file}` is not JSON: {error}", "Download it again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"`{file}` holds {type(content).__name__}, not a table", "Download it again"
        )
    return content


def _family(folder: Path, config: dict[str, Any]) -> Family:
    kind, names = config.get("model_type"), config.get("architectures") or []
    known = ", ".join(f"`{f.model_type}` ({'/'.join(f.architectures)})" for f in FAMILIES)
    for family in FAMILIES:
        if family.model_type == kind and (not names or set(names) & set(family.architectures)):
            return family
    raise UserError(
        f"`{folder}` holds model_type `{kind}` with architectures {names}, which is not known",
        f"Known: {known}. A family is a row of exporter/families.py",
    )


def _spec(
    folder: Path, family: Family, config: dict[str, Any], mask_id: int | None, eot_id: int | None
) -> Spec:
    for key, allowed in family.required.items():
        if key in config and config[key] not in allowed:
            raise UserError(
                f"`{folder}/config.json` sets {key} = {config[key]!r}, which is not implemented",
                f"Implemented: {key} in {list(allowed)}",
            )
    facts: dict[str, Any] = {name: config.get(key) for name, key in family.keys.items()}
    facts["kv_heads"] = facts.get("kv_heads") or facts["heads"]
    facts["vocab_size"] = facts["vocab_size"] or config.get("vocab_size")
    missing = [family.keys[n] for n in family.keys if facts[n] is None and n not in _OPTIONAL]
    if missing:
        raise UserError(f"`{folder}/config.json` lacks {missing}", "Use the upstream config.json")
    if not facts.get("head_dim"):
        facts["head_dim"] = facts["width"] // facts["heads"]
    facts["tied"] = bool(facts["tied"])
    numbers = {f.name: f.type for f in fields(Spec) if f.name in facts and f.type in (int, float)}
    for name, kind in numbers.items():
        try:
            facts[name] = kind(facts[name])
            assert facts[name] > 0
        except (TypeError, ValueError, AssertionError):
            key = family.keys.get(name, name)
            raise UserError(
                f"`{folder}/config.json` has {key} = {facts[name]!r}, not a positive number",
                "Use the upstream config.json",
            ) from None
    if facts["heads"] % facts["kv_heads"]:
        raise UserError(
            f"{facts['heads']} query heads do not divide into {facts['kv_heads']} key heads",
            f"Check `{folder}/config.json`",
        )
    bias = family.qkv_bias
    ids = _special_ids(folder, family, config, mask_id, eot_id, facts["vocab_size"])
    return Spec(
        family=family.name,
        qkv_bias=bool(config.get(bias)) if isinstance(bias, str) else bias,
        qk_norm=family.qk_norm,
        attention=family.attention,
        block_length=None,
        shift=family.shift,
        corruption=family.corruption,
        block_seed=family.block_seed,
        positions=family.positions,
        **facts,
        **ids,
    )


_OPTIONAL = {"head_dim", "tied"}


def _special_ids(
    folder: Path,
    family: Family,
    config: dict[str, Any],
    mask_id: int | None,
    eot_id: int | None,
    vocab: int,
) -> dict[str, Any]:
    """Mask, eos, eot, pad and bos id, from the options, the configuration and the tokenizer."""
    mask = config.get("mask_token_id") if mask_id is None else mask_id
    if mask is None:
        raise UserError(
            f"`{folder}/config.json` carries no mask_token_id", "Give it with --mask-id ID"
        )
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if eot_id is None and family.eot_token:
        eot_id = _added_tokens(folder).get(family.eot_token)
    pad = config.get("pad_token_id")
    pad = eos if pad is None else pad
    ids = {
        "mask_id": mask,
        "eos_id": eos,
        "eot_id": None if eot_id == eos else eot_id,
        "pad_id": 0 if pad is None else pad,
        "bos_id": config.get("bos_token_id"),
    }
    for name, value in ids.items():
        if value is not None and not (isinstance(value, int) and 0 <= value < vocab):
            raise UserError(
                f"{name} is {value!r}, outside of the vocabulary 0 … {vocab - 1}",
                f"Check `{folder}/config.json`, --mask-id and --eot-id",
            )
    return ids


def _added_tokens(folder: Path) -> dict[str, int]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    return {t["content"]: int(t["id"]) for t in _read_json(file).get("added_tokens", [])}


def _find_tensors(folder: Path) -> dict[str, Entry]:
    """Upstream name -> entry, from the index of a sharded checkpoint or from its one file."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        table = _read_json(index).get("weight_map")
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
    entries: dict[str, Entry] = {}
    for key, shape in model_shapes(spec).items():
        block, _, name = key.rpartition(".")
        upstream = family.tensors[name].format(i=block)
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
        entries[key] = entry
    if spec.tied:
        entries["head"] = entries["embed"]
    return entries
