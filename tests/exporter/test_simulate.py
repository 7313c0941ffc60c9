"""Simulation equals export: the torch model and the emitted graphs give the same numbers.

Weights alone: logits differ as two fp32 evaluations of one model do. Where activations are rounded
too, a value that lies between two codes may fall to either side by an fp32 rounding, and from there
on two evaluations part. So the graph is held against the simulation piece by piece: each piece gets
the very numbers that the graph fed it, and must return what the graph's does, within fp32.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import exporter.graph
from exporter import attention_graph, linear_graph, mlp_graph
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.float_session import FloatModel
from exporter.graph_kind import GRAPHS, GraphKind
from exporter.layer import Layer
from exporter.linear_groups import block_groups
from exporter.lower import write_weights
from exporter.model import Context, make_context
from exporter.operator_use import OperatorUse
from exporter.progress import Progress
from exporter.prompts import used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.quantize import Quantized
from exporter.recipe_names import METHODS, ROUND_INPUTS, UNWEIGHTED
from exporter.recipes import Recipe, make_recipe
from exporter.simulate import simulated, turned
from exporter.tasks import reference_folder
from ort_ops.build import prebuild
from ort_ops.linear_w4a8.op import TOPS
from passes.activations.attention import (
    AttentionGrid,
    probabilities,
    quantize_keys,
    quantized_attention,
    round_tokens,
)
from passes.activations.grid import fake_quantize
from passes.base import LinearGroup
from passes.transforms.duquant import DuQuant
from passes.transforms.omniquant import OmniQuant, OmniScale
from tests.fixtures_lower import TWO_FP32, golden
from tests.made_up_states import LENGTH, random_ids, run_passes

EPS = float(np.finfo(np.float32).eps)
PLAIN = GraphKind(False, False, True)


@dataclass
class Recorder:
    """Notes what the functions that build the graph were given and what they returned."""

    pieces: list[tuple[str, int, LinearGroup | None, list[ir.Value], list[ir.Value]]] = field(
        default_factory=list
    )

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        enter, leave, gated = linear_graph.enter, linear_graph.leave, linear_graph.gated
        attention = attention_graph.attention

        def watched_enter(g: Any, index: int, group: LinearGroup, x: ir.Value) -> ir.Value:
            y = enter(g, index, group, x)
            self.pieces.append(("enter", index, group, [x], [y]))
            return y

        def watched_leave(g: Any, index: int, group: LinearGroup, x: ir.Value) -> list[ir.Value]:
            ys = leave(g, index, group, x)
            self.pieces.append(("leave", index, group, [x], ys))
            return ys

        def watched_gated(g: Any, index: int, group: LinearGroup, x: ir.Value) -> ir.Value:
            before = len(self.pieces)
            y = gated(g, index, group, x)
            if len(self.pieces) == before:  # one operator, in which no linear stands alone
                self.pieces.append(("gated", index, group, [x], [y]))
            return y

        def watched_attention(
            g: Any, spec: Any, index: int, q: ir.Value, k: ir.Value, v: ir.Value, seen: Any
        ) -> ir.Value:
            y = attention(g, spec, index, q, k, v, seen)
            self.pieces.append(("attention", index, None, [q, k, v], [y]))
            return y

        for module in (exporter.graph, mlp_graph):
            patch.setattr(module, "enter", watched_enter)
        for module in (exporter.graph, mlp_graph, linear_graph):
            patch.setattr(module, "leave", watched_leave)
        patch.setattr(mlp_graph, "gated", watched_gated)
        patch.setattr(exporter.graph, "attention", watched_attention)


Piece = tuple[str, int, LinearGroup | None, list[torch.Tensor], list[torch.Tensor]]


@dataclass
class Exported:
    """A graph as ONNX Runtime runs it, all optimizations on, with every piece as an output."""

    session: ort.InferenceSession
    names: list[tuple[str, int, LinearGroup | None, list[str], list[str]]]

    def run(self, ids: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, list[Piece]]:
        """Raw logits, and inputs and outputs of every piece."""
        bias = [i.shape[1] for i in self.session.get_inputs() if i.name == "special_bias"]
        feed = {"input_ids": ids.numpy(), "key_mask": valid.numpy(), "window": np.arange(LENGTH)}
        if bias:
            feed["special_bias"] = np.zeros((2, bias[0]), np.float32)
        wanted = ["logits", *dict.fromkeys(n for p in self.names for n in (*p[3], *p[4]))]
        results = self.session.run(wanted, feed)
        found = {n: torch.from_numpy(v) for n, v in zip(wanted, results, strict=True)}
        pieces = [
            (kind, index, group, [found[n] for n in inputs], [found[n] for n in outputs])
            for kind, index, group, inputs, outputs in self.names
        ]
        return found["logits"], pieces


def export(
    checkpoint: Checkpoint,
    quantized: Quantized | None,
    recipe: Recipe,
    folder: Path,
    operators: OperatorUse | None,
) -> Exported:
    described = describe_model(checkpoint, "0" * 64, used_vocabulary(checkpoint), 64)
    folder.mkdir()
    source, facts, recorder = turned(checkpoint, recipe), loop_facts(described), Recorder()
    stored = write_weights(source, quantized, recipe, facts, folder, Progress())
    with pytest.MonkeyPatch.context() as patch:
        recorder.watch(patch)
        model = exporter.graph.build_graph(
            checkpoint.spec, stored, ir.DataType.FLOAT, PLAIN, operators=operators
        )
    values = dict.fromkeys(v for p in recorder.pieces for v in (*p[3], *p[4]))
    for number, value in enumerate(values):
        value.name, value.type = f"piece_{number}", ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)
    file = folder / GRAPHS / "pieces.onnx"
    ir.save(model, file)
    names = [
        (kind, index, group, [str(v.name) for v in inputs], [str(v.name) for v in outputs])
        for kind, index, group, inputs, outputs in recorder.pieces
    ]
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 3
    if operators is not None:
        options.register_custom_ops_library(str(prebuild()))
    return Exported(ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]), names)


def check_enter(layer: Layer, group: LinearGroup, x: torch.Tensor, got: torch.Tensor) -> None:
    """Orthogonal sums of at most 2 K products: by Cauchy-Schwarz no larger than |x| each."""
    bound = 4 * x.shape[-1] * EPS * x.norm(dim=-1, keepdim=True)
    assert ((got - layer.enter(group, x)).abs() <= bound).all(), f"enter {group.name}"


def bounds(layer: Layer, group: LinearGroup, x: torch.Tensor, own: bool) -> list[torch.Tensor]:
    """How far each linear may be off.

    Equal inputs have equal codes; what is left is the order of sums over K products. Operators of
    our own take float inputs as whole numbers of 16 bits, off by half a step at most.
    """
    grid = layer.activations.get(group.name)
    rounded = fake_quantize(x, grid).abs()
    terms, found = 2 * (x.shape[-1] + 16) * EPS, []
    step = x.abs().amax(-1, keepdim=True) / TOPS[16] if own and grid is None else x.new_zeros(1)
    for name in group.linears:
        size = rounded @ layer.tensors[name].abs().T
        if name in layer.low_rank:
            beside = layer.low_rank[name]
            size = size + (x.abs() @ beside.right.abs().T) @ beside.left.abs().T
        bias = layer.tensors.get(f"{name}_bias", torch.zeros(()))
        slack = 0.51 * step * layer.tensors[name].abs().sum(1)
        found.append(terms * (size + bias.abs()) + slack)
    return found


def check_leave(
    layer: Layer, group: LinearGroup, x: torch.Tensor, outputs: list[torch.Tensor], own: bool
) -> None:
    allowed, wanted = bounds(layer, group, x, own), layer.leave(group, x)
    for name, got, want, bound in zip(group.linears, outputs, wanted, allowed, strict=True):
        worst = (got - want).abs() - bound
        assert (worst <= 0).all(), f"{name} of {group.name} is off by {worst.max()} too much"


def check_gated(layer: Layer, group: LinearGroup, x: torch.Tensor, got: torch.Tensor) -> None:
    """silu(gate) · up: silu is at most 1.1 times as steep as its argument, and rounds ten times."""
    off_gate, off_up = bounds(layer, group, x, own=True)
    gate, up = layer.leave(group, x)
    silu = torch.nn.functional.silu(gate)
    slip = 1.1 * off_gate + 10 * EPS * silu.abs()
    bound = slip * (up.abs() + off_up) + silu.abs() * off_up + 4 * EPS * (silu * up).abs()
    worst = (got - silu * up).abs() - bound
    assert (worst <= 0).all(), f"{group.name} is off by {worst.max()} too much"


def near_middle(x: torch.Tensor, slack: float) -> torch.Tensor:
    """Where x, in steps of its grid, may be rounded to either side."""
    close: torch.Tensor = ((x - x.floor()) - 0.5).abs() < slack
    return close


def doubtful(
    q: torch.Tensor, k: torch.Tensor, context: Context, grid: AttentionGrid
) -> torch.Tensor:
    """Rows (B, H, S) of attention in which a code of q, k or p may fall to either side."""
    if grid.rotation is not None:
        q, k = q @ grid.rotation, k @ grid.rotation
    exact = k
    if grid.k_mean is not None:
        exact = k - grid.k_mean[:, None]
    elif grid.k_bits < 16 and grid.key_mean:
        shown = context.common
        real = torch.ones_like(k[..., :1]) if shown is None else shown.transpose(2, 3).float()
        exact = k - (k * real).sum(2, keepdim=True) / real.sum(2, keepdim=True)
    slack = 2e-4  # codes up to 127 times some 10 roundings of 1.2e-7

    def in_steps(x: torch.Tensor, bits: int) -> torch.Tensor:
        top = 2 ** (bits - 1) - 1
        steps: torch.Tensor = x / (x.abs().amax(-1, keepdim=True) / top).clamp_min(1e-30)
        return steps

    rows = torch.zeros(q.shape[:3], dtype=torch.bool)
    if grid.q_bits < 16:
        rows |= near_middle(in_steps(q, grid.q_bits), slack).any(-1)
    if grid.k_bits < 16:
        near = near_middle(in_steps(exact, grid.k_bits), slack).any(-1).any(-1)  # (B, kv heads)
        rows |= near.repeat_interleave(q.shape[1] // k.shape[1], 1)[..., None]
    keys = quantize_keys(k, context.common, grid)
    p = probabilities(round_tokens(q, grid.q_bits), keys, context.allowed)
    if grid.p_bits < 16:
        top = 2**grid.p_bits - 1
        scale = torch.ones(()) if grid.p_scale == "static" else p.amax(-1, keepdim=True)
        # a softmax of scores of up to 100 in fp32 is off by some 1e-5 of itself
        rows |= near_middle(p / scale * top, 1e-4 * top).any(-1)
    return rows


def check_attention(
    checkpoint: Checkpoint,
    layer: Layer,
    valid: torch.Tensor,
    inputs: list[torch.Tensor],
    got: torch.Tensor,
) -> float:
    """Rows without doubtful codes agree; returns their share."""
    q, k, v = (
        x.unflatten(-1, (-1, checkpoint.spec.head_dim)).transpose(1, 2).contiguous() for x in inputs
    )
    grid, context = layer.attention or AttentionGrid(), make_context(checkpoint.spec, valid)
    want = quantized_attention(q, k, v, context.allowed, context.common, grid)
    rows = ~doubtful(q, k, context, grid) & valid[:, None]
    apart = got.unflatten(-1, (-1, checkpoint.spec.head_dim)).transpose(1, 2) - want
    # scores of up to 100 are off by 1e-5, so are probabilities, in relation to themselves
    assert (apart[rows].abs() <= 1e-4 * v.abs().max()).all()
    return float(rows.sum() / valid[:, None].expand(rows.shape).sum())


@torch.no_grad()
def check_pieces(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, operators: OperatorUse | None = None
) -> None:
    """Every piece of the graph is that of the simulation, on masked, half-masked and clean text."""
    quantized = run_passes(checkpoint, recipe, folder / "work")
    model = simulated(checkpoint, quantized, recipe)
    graph = export(checkpoint, quantized, recipe, folder / "bundle", operators)
    layers, shares = list(model.blocks()), []
    for masked in (1.0, 0.5, 0.0):
        ids = torch.stack([random_ids(checkpoint, masked, seed) for seed in (100, 101)])
        valid = torch.arange(LENGTH)[None] >= torch.tensor([[0], [3]])
        logits, pieces = graph.run(ids, valid)
        groups = [block_groups(checkpoint.spec, index) for index in range(len(layers))]
        assert len(pieces) == sum(2 * len(each) + 1 for each in groups)  # in, out, attention
        for kind, index, group, inputs, outputs in pieces:
            if kind == "attention":
                shares.append(check_attention(checkpoint, layers[index], valid, inputs, outputs[0]))
                continue
            assert group is not None
            if kind == "enter":
                check_enter(layers[index], group, inputs[0], outputs[0])
            elif kind == "gated":
                check_gated(layers[index], group, inputs[0], outputs[0])
            else:
                check_leave(layers[index], group, inputs[0], outputs, operators is not None)
        want = model.logits(ids, valid)[valid]
        effect = (FloatModel(checkpoint).logits(ids, valid)[valid] - want).abs()
        assert effect.max() > 10 * TWO_FP32  # else there was nothing to simulate
        if recipe.activation is None and recipe.attention is None and operators is None:
            assert (logits[valid] - want).abs().max() <= TWO_FP32
    assert sum(shares) / len(shares) > 0.3  # of the rows of attention were not in doubt


METHOD_NAMES = [m for m in METHODS if m not in ("dllmquant", *ROUND_INPUTS)]


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_weights_alone(family: str, method: str, tmp_path: Path) -> None:
    checkpoint = golden(family)
    recipe = make_recipe(f"w4a16-{method}", checkpoint.spec, QuantOptions(rank=4), "fp32")
    check_pieces(checkpoint, recipe, tmp_path)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "dllmquant"])
def test_everything_in_four_bits(family: str, method: str, tmp_path: Path) -> None:
    checkpoint = golden(family)
    name = f"w4a4-{method}" if method in UNWEIGHTED else f"w4a4-{method}+cgq"
    recipe = make_recipe(name, checkpoint.spec, QuantOptions(rank=4), "fp32")
    check_pieces(checkpoint, recipe, tmp_path)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize(
    "options",
    [
        QuantOptions(activation="token"),
        QuantOptions(activation="tensor", p_scale="row", embed_bits=8, head_bits=4),
        QuantOptions(activation="group", group=32, k_bits=4, q_bits=16),
        QuantOptions(kv_bits=8),
        QuantOptions(q_bits=16, k_bits=16, v_bits=16, p_bits=16, head_bits=16),
    ],
    ids=["token", "tensor", "group", "kept codes", "float attention"],
)
def test_every_grid(family: str, bits: str, options: QuantOptions, tmp_path: Path) -> None:
    """On the default method, with rotations, and all components."""
    checkpoint = golden(family)
    plain = options.v_bits == 16
    name = f"{bits}-quarot+tmas+cgq" if plain else bits
    check_pieces(checkpoint, make_recipe(name, checkpoint.spec, options, "fp32"), tmp_path)


@pytest.mark.parametrize(
    ("family", "name", "options"),
    [
        ("sdar", "w4a8", QuantOptions()),
        ("sdar", "w4a16-gptq", QuantOptions()),
        ("llada2", "w4a4-quarot+cgq", QuantOptions()),
        ("llada2", "w8a8-smoothquant", QuantOptions(activation="tensor")),
        ("lladamoe", "w4a16-awq", QuantOptions()),
        ("lladamoe", "w4a8-duquant", QuantOptions()),
        ("lladamoe", "w4a4-omniquant", QuantOptions()),
        ("lladamoe", "w4a16-lorc", QuantOptions(rank=4)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_block_causal_models_and_experts(
    family: str, name: str, options: QuantOptions, tmp_path: Path
) -> None:
    """Experts that see few calibration tokens, or none in a forward, are among these."""
    checkpoint = golden(family)
    recipe = make_recipe(name, checkpoint.spec, options, "fp32")
    blocks = [hurried(step) for step in recipe.blocks]
    check_pieces(checkpoint, replace(recipe, blocks=tuple(blocks)), tmp_path)


def hurried(step: Any) -> Any:
    """A search of few steps: what it finds does not matter here, and experts have many groups."""
    if isinstance(step, OmniScale):
        return replace(step, search=hurried(step.search))
    return replace(step, steps=4) if isinstance(step, DuQuant | OmniQuant) else step


@pytest.mark.parametrize("bits", ["w4a16", "w8a8", "w4a8", "w4a4"])
def test_the_reference_model(bits: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(reference_folder())
    recipe = make_recipe(bits, checkpoint.spec, QuantOptions(), "fp32")
    check_pieces(checkpoint, recipe, tmp_path)


@pytest.mark.parametrize("bits", ["w4a16", "w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "lladamoe", "reference"])
def test_operators_of_our_own(family: str, bits: str, tmp_path: Path) -> None:
    """Biases, experts without tokens, shared key heads, inputs of 16 bits are among these."""
    reference = family == "reference"
    checkpoint = open_checkpoint(reference_folder()) if reference else golden(family)
    name = f"{bits}-rtn" if family == "lladamoe" else bits
    ragged = (family, bits) == ("sdar", "w4a4")  # its MLP has no even groups
    options = QuantOptions(activation="token") if ragged else QuantOptions()
    if family == "sdar":
        options = replace(options, kv_bits=8)  # codes that caches of the bundle keep
    recipe = make_recipe(name, checkpoint.spec, options, "fp32")
    check_pieces(checkpoint, recipe, tmp_path, OperatorUse())


@pytest.mark.parametrize("name", ["fp16", "w4a16-rtn"])
def test_with_fp16_arithmetic_every_weight_is_rounded_to_fp16(name: str, tmp_path: Path) -> None:
    checkpoint = golden("dream")
    recipe = make_recipe(name, checkpoint.spec, QuantOptions(), "fp16")
    model = simulated(checkpoint, run_passes(checkpoint, recipe, tmp_path), recipe)
    outer = {n: model.checkpoint.tensor(n) for n in ("embed", "final_norm")}
    for tensors in (outer, *(layer.tensors for layer in model.blocks())):
        for tensor in tensors.values():
            assert torch.equal(tensor, tensor.half().float())
