"""Reads manifest.json: the only description of a bundle that the loop knows."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import UserError
from .settings import Settings

FORMAT = 1


@dataclass(frozen=True)
class ModelFacts:
    """What the loop must know of a model; ids are None where the model has no such token."""

    family: str
    name: str
    attention: str  # "full", "block-causal", …
    shift: bool  # upstream logits at i predict i + 1; the graph has aligned them already
    corruption: str  # "absorbing" = masks
    block_seed: str
    vocab_size: int
    max_length: int  # tokens, prompt and answer together
    mask_id: int
    eos_id: int | None
    eot_id: int | None
    pad_id: int
    special_ids: tuple[int, ...]  # columns of special_bias
    block_length: int | None = None  # of a block-causal mask, in tokens
    commit: str = "block"  # "causal" = a filled block is stored by a causal pass over it


@dataclass(frozen=True)
class Graph:
    """One ONNX file of the bundle."""

    name: str
    path: str  # relative to the bundle
    guided: bool  # takes conditional and unconditional rows
    outputs: tuple[str, ...]
    cached: bool = False  # keeps keys and values between calls


@dataclass(frozen=True)
class RuntimeFacts:
    """How ONNX Runtime was set up when the bundle was checked."""

    name: str
    providers: tuple[str, ...]
    accuracy_level: int  # of MatMulNBits: 0 = as the weights, 4 = 8-bit activations


@dataclass(frozen=True)
class Bundle:
    folder: Path
    model: ModelFacts
    decode: Settings
    runtime: RuntimeFacts
    graphs: tuple[Graph, ...]
    operators: tuple[str, ...] = ()  # of our own that its graphs call
    engines: str | None = None  # the runtime that it can have engines of


def read_bundle(folder: Path) -> Bundle:
    """Read FOLDER/manifest.json; a `UserError` tells what is missing or not understood."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"no manifest.json in {folder}", hint="give the folder that `dqexport build` wrote"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}", hint="copy or build it again") from error
    if data.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {data.get('format')!r}; this loop reads format {FORMAT}",
            hint="run the bundle with its own decode.py, or build it again",
        )
    try:
        return Bundle(
            folder=folder,
            model=_facts(ModelFacts, data["model"]),
            decode=Settings(**data["decode"]),
            runtime=_facts(RuntimeFacts, data["runtime"]),
            graphs=tuple(_facts(Graph, graph) for graph in data["graphs"]),
            operators=tuple(data.get("operators", ())),
            engines=(data.get("engines") or {}).get("runtime"),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is incomplete: {error}", hint="build the bundle again") from error


def _facts(kind: type, data: dict[str, Any]) -> Any:
    """A dataclass from the entries of `data` that it names; lists become tuples."""
    values = {field.name: data[field.name] for field in fields(kind) if field.name in data}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
