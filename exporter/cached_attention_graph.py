"""Attention over a cache that holds codes: an operator of ours, or what it stands for.

On a CPU our attention without a cache computes it, from the numbers that codes stand for.
"""

import onnx_ir as ir

from exporter.families import Spec
from exporter.graph_builder import FLOAT, HALF, Builder
from exporter.visibility_graph import Visibility
from ort_ops.attention.op import NAME as ATTENTION
from ort_ops.attention.op import function_body as attention_body
from ort_ops.cached_attention.body import formula, function_body, read, write
from ort_ops.cached_attention.op import TURNS, CachedForm, operator_name
from ort_ops.function_body import Body
from passes.activations.attention import FLOAT as FLOAT_BITS
from passes.activations.attention import AttentionGrid

INT8 = ir.DataType.INT8


class Inlined(Body):
    """Writes the nodes of a function into a graph, in the place of a call."""

    def __init__(self, g: Builder) -> None:
        super().__init__(g.rules.opset, g.compute == HALF)
        self._graph = g.graph

    def op(self, kind: str, *inputs: ir.Value, **attributes: int | ir.Attr) -> ir.Value:
        given = [
            value if isinstance(value, ir.Attr) else ir.AttrInt64(name, value)
            for name, value in attributes.items()
        ]
        node = ir.Node("", kind, list(inputs), given)
        self._graph.append(node)
        return node.outputs[0]


def turns_inside(g: Builder, spec: Spec, index: int, sees: Visibility) -> bool:
    """Whether attention applies the positions of its queries and keys: nothing comes in between."""
    grid = g.blocks[index].attention
    own = g.operators is not None and g.operators.cached_attention
    alone = grid is not None and grid.rotation is None and sees.query_scale is None
    return own and alone and sees.write is not None and g.blocks[index].keeps_codes


def cached_attention(
    g: Builder,
    spec: Spec,
    index: int,
    grid: AttentionGrid,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    sees: Visibility,
) -> ir.Value:
    """Attention (rows, Q, H · K) of q (rows, Q, H · K) over the keys and values that are kept.

    k and v (rows, Q, kv heads · K), with which the fed positions are overwritten. Where
    `turns_inside`, q and k are still without their positions.
    """
    floats = grid.v_bits == FLOAT_BITS
    form = CachedForm(
        spec.heads, spec.kv_heads, q_top=2 ** (grid.q_bits - 1) - 1,
        p_top=0 if floats else 2**grid.p_bits - 1, k_bits=grid.k_bits, v_bits=grid.v_bits,
    )  # fmt: skip
    if grid.rotation is not None:
        turn = g.weight(f"{index}.rotation")
        q, k = (_by_head(g, spec, turn, x) for x in (q, k))
    buffers = _buffers(g, spec, index, form)
    caches = [g.input(name, *kind) for name, kind in buffers.items()]
    mean = g.weight(f"{index}.k_mean")
    unused = g.zeros(spec.kv_heads * spec.head_dim) if floats else None
    sides = (unused or g.weight(f"{index}.{name}") for name in ("v_scale", "v_zero"))
    assert sees.write is not None and sees.key_block is not None and sees.reach is not None
    inputs = {
        "q": q, "k": k, "v": v,
        **dict(zip(("k_cache", "k_scales", "v_cache"), caches, strict=True)),
        "start": sees.write, "key_block": sees.key_block, "reach": sees.reach,
        "k_mean": mean, **dict(zip(("v_scale", "v_zero"), sides, strict=True)),
    }  # fmt: skip
    inside = turns_inside(g, spec, index, sees)
    if inside:
        inputs |= {t: g.op("Gather", g.weight(t), sees.positions, axis=0) for t in TURNS}
    use = g.operators
    if use is not None and use.cached_attention:
        y, *kept = g.owns(
            operator_name(form, inside), lambda body: function_body(form, inside, body), 4,
            *inputs.values(), **vars(form),
        )  # fmt: skip
    elif use is not None and use.attention and g.compute == FLOAT and not floats:
        kept = list(write(Inlined(g), form, inputs))
        y = _from_numbers(g, form, inputs, kept, sees)
    else:
        y, *kept = formula(Inlined(g), form, inputs)
    for (name, kind), cache in zip(buffers.items(), kept, strict=True):
        g.output(f"{name}_out", cache, *kind)
    return y


def _from_numbers(
    g: Builder, form: CachedForm, x: dict[str, ir.Value], kept: list[ir.Value], sees: Visibility
) -> ir.Value:
    """By the operator without a cache, which finds the codes again: no key is common, of which it
    would take off a mean.
    """
    keys, values = read(Inlined(g), form, x, *kept)
    nobody = g.op("And", sees.common, g.op("Not", sees.common))
    return g.own(
        ATTENTION, attention_body, x["q"], keys, values, sees.visible, nobody,
        x["v_scale"], x["v_zero"], heads=form.heads, kv_heads=form.kv_heads,
        q_top=form.q_top, k_top=form.k_top, v_top=form.v_top, p_top=form.p_top,
    )  # fmt: skip


def _buffers(
    g: Builder, spec: Spec, index: int, form: CachedForm
) -> dict[str, tuple[ir.DataType, list[int | str]]]:
    """Type and shape of the codes of keys, their scales, and the codes of values, by name."""
    where: list[int | str] = ["rows", spec.kv_heads, g.capacity]
    return {
        f"k_{index}": (INT8, [*where, spec.head_dim * form.k_bits // 8]),
        f"k_{index}_scale": (g.compute, [*where, 1]),
        f"v_{index}": (g.compute, [*where, spec.head_dim])
        if form.v_bits == FLOAT_BITS
        else (INT8, [*where, spec.head_dim * form.v_bits // 8]),
    }


def _by_head(g: Builder, spec: Spec, turn: ir.Value, x: ir.Value) -> ir.Value:
    """x (rows, Q, heads · K), every head turned."""
    apart = g.op("Reshape", x, g.ints([0, 0, -1, spec.head_dim]))
    return g.op("Reshape", g.op("MatMul", apart, turn), g.ints([0, 0, -1]))
