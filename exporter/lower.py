"""Lowering: the weights of a bundle's graphs into one file, then the graphs over it.

Tensor names in the file: `embed`, `final_norm`, `head`, `suppress`, `cos`, `sin` and
`<block>.<name>`; linears are (in, out). A quantized linear `x` has its codes in `x`, its scales
(in / group, out) in `x.scale`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import torch

from exporter.checkpoint import Checkpoint
from exporter.families import Spec, block_shapes
from exporter.graph import build_graph
from exporter.graph_kind import GRAPHS, GraphKind
from exporter.model import LINEARS, rotary_tables
from exporter.progress import Progress
from exporter.quantize import Quantized
from exporter.recipes import Recipe
from exporter.reductions import SUPPRESSED
from exporter.runtime.bundle import ModelFacts
from exporter.weights_file import Stored, WeightsFile, as_bytes, as_type
from ort_ops.int4 import pack_int4
from passes.numerics import QuantizedLinear
from passes.weights.rtn import round_to_nearest

TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
ROWS_AT_ONCE = 4096  # of embedding and head


def write_weights(
    checkpoint: Checkpoint,
    quantized: Quantized | None,
    recipe: Recipe,
    facts: ModelFacts,
    draft: Path,
    progress: Progress,
) -> Stored:
    """Write all tensors of the graphs below `draft`, block by block."""
    spec, compute = checkpoint.spec, TYPES[recipe.compute]
    file = draft / GRAPHS / "weights.bin"
    file.parent.mkdir()
    with WeightsFile(file) as out, progress.stage("lower", spec.layers + 2) as step:
        _add_embedding(out, checkpoint, recipe)
        step()
        for index in range(spec.layers):
            _add_block(out, checkpoint, quantized, index, compute)
            step()
        _add(out, "final_norm", checkpoint.tensor("final_norm"), compute)
        _add_head(out, checkpoint, recipe, compute)
        cos, sin = rotary_tables(spec, torch.arange(facts.max_length))
        _add(out, "cos", cos, compute)
        _add(out, "sin", sin, compute)
        _add(out, "suppress", suppression(spec, facts.vocab_size), ir.DataType.FLOAT)
        step()
    return out.stored


def write_graphs(
    spec: Spec, stored: Stored, recipe: Recipe, kinds: Sequence[GraphKind], draft: Path
) -> None:
    """Write one small file for each kind of graph beside the weights file."""
    for kind in kinds:
        graph = build_graph(spec, stored, TYPES[recipe.compute], kind)
        ir.save(graph, draft / GRAPHS / f"{kind.name}.onnx")


def suppression(spec: Spec, used_vocab: int) -> torch.Tensor:
    """Bias (V,) on the logits that keeps the mask id and padding rows of the head from winning."""
    bias = torch.zeros(spec.vocab_size)
    bias[spec.mask_id] = SUPPRESSED
    bias[used_vocab:] = SUPPRESSED
    return bias


def _add(out: WeightsFile, name: str, tensor: torch.Tensor, dtype: ir.DataType) -> None:
    out.add(name, dtype, tuple(tensor.shape), [as_bytes(name, tensor, dtype)])


def _add_block(
    out: WeightsFile,
    checkpoint: Checkpoint,
    quantized: Quantized | None,
    index: int,
    compute: ir.DataType,
) -> None:
    linears = {} if quantized is None else quantized.block(index)
    for name in block_shapes(checkpoint.spec):
        key = f"{index}.{name}"
        if name in linears:
            _add_quantized(out, key, linears[name])
        else:
            weight = checkpoint.tensor(name, index)
            _add(out, key, weight.T if name in LINEARS else weight, compute)


def _add_quantized(out: WeightsFile, key: str, linear: QuantizedLinear) -> None:
    codes, scales = linear.codes.T.contiguous(), linear.scales.T.contiguous()
    dtype = ir.DataType.INT4 if linear.bits == 4 else ir.DataType.INT8
    data = pack_int4(codes.numpy()).tobytes() if linear.bits == 4 else codes.numpy().tobytes()
    out.add(key, dtype, tuple(codes.shape), [data])
    _add(out, f"{key}.scale", scales, ir.DataType.FLOAT16)
    out.stored.groups[key] = linear.group


def _add_embedding(out: WeightsFile, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Rows as floats, or as int8 with one scale a row."""
    shape = checkpoint.entries["embed"].shape
    if recipe.embed_bits == 16:
        dtype = TYPES[recipe.storage]
        rows = checkpoint.rows("embed", ROWS_AT_ONCE)
        parts = (as_bytes("embed", part, dtype) for part in rows)
        out.add("embed", dtype, shape, parts)
        return
    scales: list[torch.Tensor] = []

    def codes() -> Iterator[bytes]:
        for rows in checkpoint.rows("embed", ROWS_AT_ONCE):
            rounded = round_to_nearest(rows, 8, shape[1])
            scales.append(rounded.scales)
            yield rounded.codes.numpy().tobytes()

    out.add("embed", ir.DataType.INT8, shape, codes())
    _add(out, "embed.scale", torch.cat(scales), ir.DataType.FLOAT16)


def _add_head(
    out: WeightsFile, checkpoint: Checkpoint, recipe: Recipe, compute: ir.DataType
) -> None:
    """The head as a linear (D, V), rounded to 8 bits where the recipe says so."""
    rows = checkpoint.rows("head", ROWS_AT_ONCE)
    vocab, width = checkpoint.entries["head"].shape
    if recipe.head_bits == 16:
        half = compute == ir.DataType.FLOAT16
        weight = torch.empty(width, vocab, dtype=torch.float16 if half else torch.float32)
        first = 0
        for part in rows:
            weight[:, first : first + len(part)] = as_type("head", part, compute).T
            first += len(part)
        _add(out, "head", weight, compute)
        return
    parts = [round_to_nearest(part, 8, recipe.head_group) for part in rows]
    codes = torch.cat([part.codes for part in parts])
    scales = torch.cat([part.scales for part in parts])
    _add_quantized(out, "head", QuantizedLinear(codes, scales, 8, recipe.head_group))
