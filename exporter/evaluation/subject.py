"""What is evaluated: a checkpoint, a simulated quantized one, or a bundle, seen in one way."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import DecodeOptions, default_settings, describe_model, loop_facts
from exporter.errors import UserError
from exporter.evaluation.raw_logits import RawLogits, of_bundle, of_model
from exporter.float_session import KEEP_BYTES, FloatModel, FloatSession
from exporter.machine import parse_memory, read_text
from exporter.progress import Progress
from exporter.prompts import used_vocabulary
from exporter.runtime.bundle import Bundle, ModelFacts, read_bundle
from exporter.runtime.session import Session
from exporter.runtime.session_ort import open_session
from exporter.runtime.settings import Settings
from exporter.runtime.text import Text
from exporter.tasks import Reference, reference_folder
from exporter.tokenizer import read_tokenizer

MANIFEST = "manifest.json"
REFERENCES: dict[str, Reference] = {
    "reference": "one-step",
    "reference-steps": "steps",
    "reference-blocks": "blocks",
}
# mask id, end-of-turn id, block of a block-causal mask and name of the family, where a checkpoint
# does not tell them
Ids = tuple[int | None, int | None, int | None, str | None]
UNTOLD: Ids = (None, None, None, None)
# guided?, reductions that will be asked for, with a cache?
Open = Callable[[bool, frozenset[str], bool], Session]


@dataclass(frozen=True)
class Hardware:
    """Where it runs; None leaves it to the bundle."""

    device: str = "cpu"  # of torch, for checkpoints
    provider: str | None = None  # of ONNX Runtime, for bundles, as the two below
    threads: int | None = None
    accuracy_level: int | None = None  # of MatMulNBits
    operators: bool = True  # the bundle's own


@dataclass(frozen=True)
class Subject:
    """A model that can be decoded with. Equal `digest`s give equal numbers."""

    name: str
    digest: str  # of weights and configuration, or of a bundle's manifest
    facts: ModelFacts
    settings: Settings  # decoding defaults
    open: Open
    text: Text | None  # prompts to ids and back; None: prompts are ids
    tokenizer: Tokenizer | None  # the same without a chat template, for answers that are given
    logits: Callable[[], RawLogits] | None  # None: a bundle whose graphs return none
    recipe: str | None  # what it is quantized with, where that is known
    is_float: bool  # the float model itself


def open_subject(where: str, hardware: Hardware, progress: Progress, ids: Ids = UNTOLD) -> Subject:
    """Open a checkpoint folder, a bundle folder, or a name in REFERENCES. Raises UserError."""
    if (folder_of(where) / MANIFEST).is_file():
        return bundle_subject(read_bundle(Path(where)), hardware)
    checkpoint, digest = open_float(where, progress, ids)
    return model_subject(checkpoint, float_model(checkpoint, hardware.device), digest)


def float_model(checkpoint: Checkpoint, device: str) -> FloatModel:
    """The float model, all of it in memory where there is room."""
    return FloatModel(checkpoint, device, keep=room(device))


def room(device: str) -> int:
    """Bytes of weights that may stay in memory: half of what is free."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    memory = parse_memory(read_text(Path("/proc/meminfo")))
    return memory.available // 2 if memory else KEEP_BYTES


def open_float(where: str, progress: Progress, ids: Ids) -> tuple[Checkpoint, str]:
    """A checkpoint and its digest, every weight looked at. Raises UserError."""
    folder = folder_of(where)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"`{where}` is no checkpoint: it has no config.json",
            f"Give a checkpoint (without --recipe also a bundle), or {' or '.join(REFERENCES)}",
        )
    checkpoint = open_checkpoint(folder, *ids)
    with progress.stage("check weights", 1) as step:
        digest = checkpoint.digest()
        step()
    return checkpoint, digest


def folder_of(where: str) -> Path:
    """The folder that is meant by a path or a name in REFERENCES."""
    return reference_folder(REFERENCES[where]) if where in REFERENCES else Path(where)


def model_subject(checkpoint: Checkpoint, model: FloatModel, digest: str) -> Subject:
    """A model in torch, over the checkpoint with this digest."""
    canvas = checkpoint.spec.max_length
    facts = loop_facts(describe_model(checkpoint, digest, used_vocabulary(checkpoint), canvas))
    tokenizer = read_tokenizer(checkpoint.folder)
    return Subject(
        name=facts.name,
        digest=digest,
        facts=facts,
        settings=default_settings(checkpoint, DecodeOptions()),
        open=lambda guided, wanted, cached: FloatSession(model, facts.vocab_size),
        text=None if tokenizer is None else Text(checkpoint.folder, tokenizer),
        tokenizer=tokenizer,
        logits=lambda: of_model(model),
        recipe=None,
        is_float=True,
    )


def bundle_subject(bundle: Bundle, hardware: Hardware) -> Subject:
    """A bundle, run by ONNX Runtime."""

    def opened(guided: bool, wanted: frozenset[str], cached: bool) -> Session:
        return open_session(
            bundle, guided, wanted, hardware.provider, hardware.threads, hardware.accuracy_level,
            cached, hardware.operators,
        )  # fmt: skip

    def logits() -> RawLogits:
        return of_bundle(opened(False, frozenset({"logits"}), False), bundle.model)

    has_logits = any("logits" in graph.outputs for graph in bundle.graphs)
    content = (bundle.folder / MANIFEST).read_bytes()
    tokenizer = read_tokenizer(bundle.folder / "tokenizer")
    return Subject(
        name=bundle.folder.resolve().name,
        digest=hashlib.sha256(content).hexdigest(),
        facts=bundle.model,
        settings=bundle.decode,
        open=opened,
        text=None if tokenizer is None else Text(bundle.folder / "tokenizer", tokenizer),
        tokenizer=tokenizer,
        logits=logits if has_logits else None,
        recipe=json.loads(content).get("recipe"),
        is_float=False,
    )
