"""A quantized block: what the passes made of it, as it is kept on disk and lowered."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from exporter.integer_weight import integer_weight
from exporter.layer import Layer
from exporter.tensor_files import Entry, read_header, write_atomically, write_tensors
from exporter.work import to_json
from passes.activations.attention import AttentionGrid
from passes.activations.grid import ActivationGrid
from passes.base import LowRank
from passes.numerics import QuantizedLinear
from passes.transforms.online import Permutation, Rotation, Transform

OPERANDS = ("rotation", "k_mean", "v_scale", "v_zero")  # tensors of an attention grid


@dataclass(frozen=True)
class QuantizedBlock:
    """One block's tensors: `floats` hold what is not quantized, `linears` the rest."""

    floats: Mapping[str, torch.Tensor]
    linears: Mapping[str, QuantizedLinear] = field(default_factory=dict)
    transforms: Mapping[str, tuple[Transform, ...]] = field(default_factory=dict)  # by group
    activations: Mapping[str, ActivationGrid] = field(default_factory=dict)  # by group
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)  # by linear
    attention: AttentionGrid | None = None

    def layer(self, integers: bool = False) -> Layer:
        """The block as it runs, weights de-quantized; with `integers` for kernels of ours, too."""
        rounded = {name: linear.dequantize() for name, linear in self.linears.items()}
        codes = {n: integer_weight(x) for n, x in self.linears.items()} if integers else {}
        return Layer(
            {**self.floats, **rounded},
            self.transforms, self.activations, self.low_rank, self.attention,
            {name: weight for name, weight in codes.items() if weight is not None},
        )  # fmt: skip

    def to(self, device: str) -> "QuantizedBlock":
        """The same on another device."""
        return QuantizedBlock(
            {name: tensor.to(device) for name, tensor in self.floats.items()},
            {name: linear.to(device) for name, linear in self.linears.items()},
            {name: tuple(t.to(device) for t in steps) for name, steps in self.transforms.items()},
            self.activations,
            {n: LowRank(b.left.to(device), b.right.to(device)) for n, b in self.low_rank.items()},
            None if self.attention is None else _grid_to(self.attention, device),
        )


def save(file: Path, block: QuantizedBlock, facts: Mapping[str, Any]) -> None:
    """Write `file`.safetensors and then `file`.json, which marks the block as done."""
    tensors = {f"float.{name}": tensor for name, tensor in block.floats.items()}
    for name, linear in block.linears.items():
        tensors[f"{name}.codes"] = linear.codes
        if linear.channel is None:
            tensors[f"{name}.scales"] = linear.scales.half()
        else:
            tensors[f"{name}.steps"] = linear.steps().to(torch.uint8)
            tensors[f"{name}.channel"] = linear.channel.half()
    for name, beside in block.low_rank.items():
        tensors |= {f"{name}.left": beside.left.half(), f"{name}.right": beside.right.half()}
    for group, steps in block.transforms.items():
        for index, step in enumerate(steps):
            tensors |= {f"{group}/{index}.{n}": t for n, t in vars(step).items() if t is not None}
    content = {
        "linears": {name: [linear.bits, linear.group] for name, linear in block.linears.items()},
        "transforms": {group: len(steps) for group, steps in block.transforms.items()},
        "activations": {group: asdict(grid) for group, grid in block.activations.items()},
        "low_rank": sorted(block.low_rank),
        "attention": None,
    }
    if block.attention is not None:
        parts = vars(block.attention)
        tensors |= {f"attention.{n}": parts[n] for n in OPERANDS if parts[n] is not None}
        content["attention"] = {n: v for n, v in parts.items() if n not in OPERANDS}
    write_tensors(file.with_suffix(".safetensors"), tensors)
    write_atomically(file.with_suffix(".json"), [to_json({**content, **facts})])


def load(file: Path) -> QuantizedBlock:
    """The block that `save` wrote."""
    entries = read_header(file.with_suffix(".safetensors"))
    content = json.loads(file.with_suffix(".json").read_text())
    halves = {name: entries[name].read().float() for name in entries if _is_half(name)}
    attention = None
    if content["attention"] is not None:
        operands: dict[str, Any] = {
            n: entries[f"attention.{n}"].read() for n in OPERANDS if _has(entries, n)
        }
        attention = AttentionGrid(**content["attention"], **operands)
    return QuantizedBlock(
        {n.removeprefix("float."): e.read() for n, e in entries.items() if n.startswith("float.")},
        {name: _linear(name, entries, *shape) for name, shape in content["linears"].items()},
        {
            group: tuple(_transform(entries, f"{group}/{index}.") for index in range(count))
            for group, count in content["transforms"].items()
        },
        {group: ActivationGrid(**grid) for group, grid in content["activations"].items()},
        {n: LowRank(halves[f"{n}.left"], halves[f"{n}.right"]) for n in content["low_rank"]},
        attention,
    )


def _is_half(name: str) -> bool:
    return name.endswith((".left", ".right")) and "/" not in name


def _has(entries: Mapping[str, Entry], operand: str) -> bool:
    return f"attention.{operand}" in entries


def _linear(name: str, entries: Mapping[str, Entry], bits: int, group: int) -> QuantizedLinear:
    codes = entries[f"{name}.codes"].read()
    if f"{name}.channel" not in entries:
        return QuantizedLinear(codes, entries[f"{name}.scales"].read().float(), bits, group)
    channel = entries[f"{name}.channel"].read().float()
    steps = entries[f"{name}.steps"].read().float()
    return QuantizedLinear(codes, steps * channel, bits, group, channel)


def _transform(entries: Mapping[str, Entry], prefix: str) -> Transform:
    parts = {n.removeprefix(prefix): e.read() for n, e in entries.items() if n.startswith(prefix)}
    return Permutation(**parts) if "order" in parts else Rotation(**parts)


def _grid_to(grid: AttentionGrid, device: str) -> AttentionGrid:
    parts = {n: vars(grid)[n] for n in OPERANDS}
    moved = {n: part.to(device) for n, part in parts.items() if part is not None}
    return replace(grid, **moved)
