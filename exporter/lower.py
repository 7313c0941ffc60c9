"""Lowering: the weights of a bundle's graphs into one file, then the graphs over it.

Tensor names in the file: `embed`, `final_norm`, `head`, `suppress`, `cos`, `sin` and
`<block>.<name>`; linears and routers are (in, out). A quantized linear `x` has its codes in `x`,
its scales (in / group, out) in `x.scale`; on two levels `x.steps` (in / group, out) are integers
and `x.scale` (out,) are the row scales. `x.left`, `x.right` are a low-rank correction. What turns
the input of a group lies in `<block>.<group>/<number>.<side>`, the mean key in
`<block>.k_mean`, the grid of values in `<block>.v_scale`, `.v_zero`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import torch

from exporter.families import Spec, model_shapes
from exporter.graph import build_graph
from exporter.graph_kind import GRAPHS, GraphKind
from exporter.graph_rules import PLAIN, GraphRules
from exporter.linear_groups import EXACT
from exporter.model import rotary_tables
from exporter.operator_use import OperatorUse
from exporter.progress import Progress
from exporter.quantize import Quantized
from exporter.quantized_block import OPERANDS, QuantizedBlock
from exporter.recipes import Recipe
from exporter.reductions import SUPPRESSED
from exporter.rounded import round_embedding, round_head
from exporter.runtime.bundle import ModelFacts
from exporter.source import Source
from exporter.weights_file import BlockForm, Stored, WeightsFile, as_bytes, as_type
from ort_ops.function_body import DOMAIN
from ort_ops.int4 import pack_int4
from passes.numerics import QuantizedLinear

TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
ROWS_AT_ONCE = 4096  # of embedding and head


def write_weights(
    source: Source,
    quantized: Quantized | None,
    recipe: Recipe,
    facts: ModelFacts,
    draft: Path,
    progress: Progress,
) -> Stored:
    """Write all tensors of the graphs below `draft`, block by block.

    `source` is the checkpoint as the recipe turns it.
    """
    spec, compute = source.spec, TYPES[recipe.compute]
    file = draft / GRAPHS / "weights.bin"
    file.parent.mkdir()
    with WeightsFile(file) as out, progress.stage("lower", spec.layers + 2) as step:
        _add_embedding(out, source, recipe)
        step()
        for index in range(spec.layers):
            block = quantized.block(index) if quantized else QuantizedBlock(source.block(index))
            _add_block(out, block, str(index), compute)
            step()
        _add(out, "final_norm", source.tensor("final_norm"), compute)
        _add_head(out, source, recipe, compute)
        # a shadow stands behind the canvas: ONNX Runtime wants a row for each token that is fed
        rows = facts.max_length * (2 if spec.can_cast_shadow else 1)
        cos, sin = rotary_tables(spec, torch.arange(rows))
        _add(out, "cos", cos, compute)
        _add(out, "sin", sin, compute)
        _add(out, "suppress", suppression(spec, facts.vocab_size), ir.DataType.FLOAT)
        step()
    return out.stored


def write_graphs(
    spec: Spec,
    stored: Stored,
    recipe: Recipe,
    kinds: Sequence[GraphKind],
    draft: Path,
    operators: OperatorUse | None = None,
    rules: GraphRules = PLAIN,
) -> dict[str, int]:
    """Write one small file for each kind of graph beside the weights file.

    How many nodes of each operator of ours a graph has at most.
    """
    used: Counter[str] = Counter()
    for kind in kinds:
        compute = TYPES[recipe.compute]
        model = build_graph(spec, stored, compute, kind, recipe.kv_bits, operators, rules)
        ir.save(model, draft / GRAPHS / f"{kind.name}.onnx")
        used |= Counter(node.op_type for node in model.graph if node.domain == DOMAIN)
    return dict(sorted(used.items()))


def suppression(spec: Spec, used_vocab: int) -> torch.Tensor:
    """Bias (V,) on the logits that keeps the mask id and padding rows of the head from winning."""
    bias = torch.zeros(spec.vocab_size)
    bias[spec.mask_id] = SUPPRESSED
    bias[used_vocab:] = SUPPRESSED
    return bias


def _add(out: WeightsFile, name: str, tensor: torch.Tensor, dtype: ir.DataType) -> None:
    out.add(name, dtype, tuple(tensor.shape), [as_bytes(name, tensor, dtype)])


def _add_block(out: WeightsFile, block: QuantizedBlock, index: str, compute: ir.DataType) -> None:
    for name, tensor in block.floats.items():
        dtype = ir.DataType.FLOAT if name in EXACT else compute
        _add(out, f"{index}.{name}", tensor.T if tensor.dim() == 2 else tensor, dtype)
    for name, linear in block.linears.items():
        _add_quantized(out, f"{index}.{name}", linear)
    for name, beside in block.low_rank.items():
        _add(out, f"{index}.{name}.right", beside.right.T, ir.DataType.FLOAT16)
        _add(out, f"{index}.{name}.left", beside.left.T, ir.DataType.FLOAT16)
    turns: dict[str, list[str]] = {}
    for group, steps in block.transforms.items():
        turns[group] = [f"{index}.{group}/{number}" for number in range(len(steps))]
        for prefix, step in zip(turns[group], steps, strict=True):
            _add_sides(out, prefix, vars(step), compute)
    if block.attention is not None:
        _add_sides(out, index, {n: vars(block.attention)[n] for n in OPERANDS}, compute)
    form = BlockForm(turns, dict(block.activations), block.attention)
    out.stored.blocks.append(form)


def _add_sides(
    out: WeightsFile, prefix: str, parts: dict[str, torch.Tensor | None], compute: ir.DataType
) -> None:
    """Tensors of a transform or an attention grid; those that are there."""
    for name, tensor in parts.items():
        if tensor is None:
            continue
        if name == "left":
            tensor = tensor.T  # it multiplies from the left
        if name == "k_mean":
            tensor = tensor[:, None]  # (kv heads, 1, K), beside (…, kv heads, S, K)
        if name.startswith("v_"):
            tensor = tensor[:, None, None]  # (kv heads, 1, 1, K), beside (…, kv heads, 1, S, K)
        _add(out, f"{prefix}.{name}", tensor, _type_of(tensor, compute))


def _type_of(tensor: torch.Tensor, compute: ir.DataType) -> ir.DataType:
    return compute if tensor.is_floating_point() else ir.DataType.INT64


def _add_quantized(out: WeightsFile, key: str, linear: QuantizedLinear) -> None:
    codes = linear.codes.T.contiguous()
    dtype = ir.DataType.INT4 if linear.bits <= 4 else ir.DataType.INT8
    packed = pack_int4(codes.numpy()) if dtype == ir.DataType.INT4 else codes.numpy()
    out.add(key, dtype, tuple(codes.shape), [packed.tobytes()])
    if linear.channel is None:
        _add(out, f"{key}.scale", linear.scales.T, ir.DataType.FLOAT16)
    else:
        _add(out, f"{key}.scale", linear.channel[:, 0], ir.DataType.FLOAT16)
        _add(out, f"{key}.steps", linear.steps().T.to(torch.int8), ir.DataType.INT8)
    out.stored.groups[key] = linear.group


def _add_embedding(out: WeightsFile, source: Source, recipe: Recipe) -> None:
    """Rows as floats, or as int8 with one scale a row."""
    shape = model_shapes(source.spec)["embed"]
    if recipe.embed_bits == 16:
        dtype = TYPES[recipe.storage]
        rows = source.rows("embed", ROWS_AT_ONCE)
        parts = (as_bytes("embed", part, dtype) for part in rows)
        out.add("embed", dtype, shape, parts)
        return
    scales: list[torch.Tensor] = []

    def codes() -> Iterator[bytes]:
        for rows in source.rows("embed", ROWS_AT_ONCE):
            rounded = round_embedding(rows)
            scales.append(rounded.scales)
            yield rounded.codes.numpy().tobytes()

    out.add("embed", ir.DataType.INT8, shape, codes())
    _add(out, "embed.scale", torch.cat(scales), ir.DataType.FLOAT16)


def _add_head(out: WeightsFile, source: Source, recipe: Recipe, compute: ir.DataType) -> None:
    """The head as a linear (D, V), quantized where the recipe says so."""
    rows = source.rows("head", ROWS_AT_ONCE)
    vocab, width = model_shapes(source.spec)["embed"]
    if recipe.head_bits == 16:
        half = compute == ir.DataType.FLOAT16
        weight = torch.empty(width, vocab, dtype=torch.float16 if half else torch.float32)
        first = 0
        for part in rows:
            weight[:, first : first + len(part)] = as_type("head", part, compute).T
            first += len(part)
        _add(out, "head", weight, compute)
        return
    parts = [round_head(part, recipe) for part in rows]
    codes = torch.cat([part.codes for part in parts])
    scales = torch.cat([part.scales for part in parts])
    whole = QuantizedLinear(codes, scales, recipe.head_bits, recipe.head_group)
    _add_quantized(out, "head", whole)
