"""Weights and quantized graphs: the file, what ONNX Runtime makes of it, and the numbers."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import UserError
from exporter.families import Spec
from exporter.float_session import FloatModel, FloatSession
from exporter.graph_kind import GraphKind
from exporter.lower import suppression
from exporter.model import LINEARS
from exporter.prompts import used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.reductions import SUPPRESSED
from exporter.runtime.session import Reductions, Session
from exporter.weights_file import ALIGNMENT, as_bytes
from ort_ops.int4 import unpack_int4
from tests.fixtures_lower import (
    FP16_ERROR,
    GOLDEN_FAMILIES,
    KINDS,
    TWO_FP32,
    Lowered,
    check_reductions,
    de_quantized,
    golden,
    golden_variant,
    lower,
    random_checkpoint,
    write_word_tokenizer,
)

each_family = pytest.mark.parametrize("family", GOLDEN_FAMILIES)
FULL, SAMPLE = GraphKind(), GraphKind(sample=True)
HEADS = {"llada": "model.transformer.ff_out.weight", "dream": "lm_head.weight"}


def ask(session: Session, spec: Spec, names: list[str], used_vocab: int) -> Reductions:
    """Reductions of two left-padded rows, half of them masks, at every real position."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(used_vocab, spec.mask_id), (2, 32))
    ids[:, 16:] = spec.mask_id
    keep = np.arange(32) >= np.asarray([[3], [0]])
    bias = np.zeros((2, len(spec.special_ids)), np.float32)
    return session.forward(ids, keep, np.arange(4, 32), bias, None, 0.7, frozenset(names))


def compare(lowered: Lowered, float_checkpoint: Checkpoint, error: float) -> None:
    """The `full-sample` graph against the float model of another checkpoint."""
    spec, used = lowered.checkpoint.spec, used_vocabulary(lowered.checkpoint)
    names = SAMPLE.outputs
    want = ask(FloatSession(FloatModel(float_checkpoint), used), spec, names, used)
    got = ask(lowered.session(SAMPLE), spec, names, used)
    check_reductions(got, want, error, spec.vocab_size, 0.7)
    assert (want["l1"] - want["l2"] > 2 * error).mean() > 0.3  # so many ids were compared


@dataclass(frozen=True)
class Variant:
    family: str
    recipe: str
    options: QuantOptions = field(default_factory=QuantOptions)

    def __str__(self) -> str:
        return f"{self.family}-{self.recipe}-head{self.options.head_bits}" + (
            f"-embed{self.options.embed_bits}"
        )


VARIANTS = [
    *(Variant(f, r) for f in GOLDEN_FAMILIES for r in ("w4a16-rtn", "w8a16-rtn")),
    *(Variant(f, "w4a16-rtn", QuantOptions(embed_bits=8)) for f in GOLDEN_FAMILIES),
    Variant("llada", "w8a16-rtn", QuantOptions(head_bits=16, embed_bits=8)),
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lowered]:
    return {
        str(v): lower(golden(v.family), v.recipe, tmp_path_factory.mktemp(str(v)), v.options)
        for v in VARIANTS
    }


# The weights file


def check_layout(lowered: Lowered) -> None:
    """Tensors start on pages, do not overlap, and reach to the end of the file."""
    tensors = sorted(lowered.stored.tensors.values(), key=lambda tensor: tensor.offset or 0)
    end = 0
    for tensor in tensors:
        assert tensor.offset is not None
        assert tensor.length is not None
        assert tensor.offset % ALIGNMENT == 0
        assert end <= tensor.offset < end + ALIGNMENT
        end = tensor.offset + tensor.length
    assert end == lowered.weights.stat().st_size


@each_variant
def test_tensors_lie_apart_in_one_file(variant: Variant, quantized: dict[str, Lowered]) -> None:
    check_layout(quantized[str(variant)])


@each_variant
def test_all_graphs_share_the_file(variant: Variant, quantized: dict[str, Lowered]) -> None:
    """Every graph refers to the same bytes under the same name, inside of the folder."""
    lowered = quantized[str(variant)]
    files = sorted(p.name for p in lowered.weights.parent.iterdir())
    assert files == sorted([*(f"{kind.name}.onnx" for kind in lowered.kinds), "weights.bin"])
    places = []
    for kind in lowered.kinds:
        model = onnx.load(lowered.graph(kind), load_external_data=False)
        outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        facts = {t.name: {e.key: e.value for e in t.external_data} for t in outside}
        assert {fact["location"] for fact in facts.values()} == {"weights.bin"}
        places.append({n: (int(f["offset"]), int(f["length"])) for n, f in facts.items()})
    stored = {n: (t.offset, t.length) for n, t in lowered.stored.tensors.items()}
    assert all(place == stored for place in places)


@each_variant
def test_the_file_holds_what_was_quantized(variant: Variant, quantized: dict[str, Lowered]) -> None:
    """Codes and scales, transposed to (in, out), bit by bit."""
    lowered = quantized[str(variant)]
    assert lowered.quantized is not None
    content = lowered.weights.read_bytes()

    def stored(name: str) -> bytes:
        tensor = lowered.stored.tensors[name]
        assert tensor.offset is not None
        assert tensor.length is not None
        return content[tensor.offset : tensor.offset + tensor.length]

    for name, linear in lowered.quantized.block(1).linears.items():
        shape = linear.codes.T.shape
        if linear.bits == 4:
            codes = unpack_int4(np.frombuffer(stored(f"1.{name}"), np.uint8), tuple(shape))
        else:
            codes = np.frombuffer(stored(f"1.{name}"), np.int8).reshape(shape)
        scales = np.frombuffer(stored(f"1.{name}.scale"), np.float16).reshape(-1, shape[1])
        assert np.array_equal(codes, linear.codes.T)
        assert np.array_equal(scales, linear.scales.T)


def test_two_lowerings_give_equal_files(tmp_path: Path) -> None:
    a, b = (lower(golden("dream"), "w4a16-rtn", tmp_path / name) for name in "ab")
    assert a.weights.read_bytes() == b.weights.read_bytes()
    for kind in KINDS:
        assert a.graph(kind).read_bytes() == b.graph(kind).read_bytes()


# What ONNX Runtime runs


def optimized(path: Path, out: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime makes of a graph file."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(out, load_external_data=False)


def check_fused(lowered: Lowered, out: Path) -> None:
    """One MatMulNBits a quantized linear, and no other product with weights."""
    assert lowered.recipe.weights is not None
    layers, vocab = lowered.checkpoint.spec.layers, lowered.checkpoint.spec.vocab_size
    expected = Counter({lowered.recipe.weights.bits: layers * len(LINEARS)})
    quantized_head = lowered.recipe.head_bits == 8
    expected[8] += quantized_head
    for kind in KINDS:
        nodes = optimized(lowered.graph(kind), out / f"{kind.name}.onnx").graph.node
        found, groups = Counter[int](), set[int]()
        for node in nodes:
            if node.op_type == "MatMulNBits":
                facts = {a.name: a.i for a in node.attribute}
                found[facts["bits"]] += 1
                if facts["N"] != vocab:
                    groups.add(facts["block_size"])
        assert found == +expected
        assert groups == {lowered.recipe.weights.group}
        types = Counter(node.op_type for node in nodes)
        assert types["DequantizeLinear"] == types["Gemm"] == 0
        assert types["MatMul"] == (not quantized_head)


@each_variant
def test_every_quantized_linear_runs_fused(
    variant: Variant, quantized: dict[str, Lowered], tmp_path: Path
) -> None:
    check_fused(quantized[str(variant)], tmp_path)


@each_family
@pytest.mark.parametrize("recipe", ["w8a8-rtn", "w4a8-rtn", "w4a4-rtn+token", "w4a4-rtn"])
def test_rounded_activations_meet_weights_in_fast_products(
    family: str, recipe: str, tmp_path: Path
) -> None:
    """Integers where a token has one scale, whatever the weights are packed in; else 4 bits."""
    lowered = lower(golden(family), recipe, tmp_path / "lowered", QuantOptions(v_bits=16))
    linears = golden(family).spec.layers * len(LINEARS)
    for kind in KINDS:
        nodes = optimized(lowered.graph(kind), tmp_path / f"{kind.name}.onnx").graph.node
        types = Counter(node.op_type for node in nodes)
        fast = "MatMulNBits" if recipe == "w4a4-rtn" else "MatMulIntegerToFloat"
        assert types["MatMulIntegerToFloat"] + types["MatMulNBits"] == linears + 1  # the head
        assert types[fast] >= linears
        assert types["DequantizeLinear"] == types["Gemm"] == 0


# Numbers


@each_variant
def test_quantized_graphs_equal_the_float_model_with_their_weights(
    variant: Variant, quantized: dict[str, Lowered], tmp_path: Path
) -> None:
    """Codes times scales are exact in fp32 (8 + 11 bits of 24), so both compute with the same
    weights and differ as two fp32 evaluations of one model of the golden size do."""
    lowered = quantized[str(variant)]
    compare(lowered, de_quantized(lowered, tmp_path / "float"), TWO_FP32)


@each_family
def test_quantization_changes_the_numbers(family: str, quantized: dict[str, Lowered]) -> None:
    """Else the test above compares nothing."""
    lowered = quantized[str(Variant(family, "w8a16-rtn"))]
    with pytest.raises(AssertionError):
        compare(lowered, lowered.checkpoint, TWO_FP32)


@each_family
@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w8a16-rtn"])
def test_a_last_group_may_be_shorter(family: str, recipe: str, tmp_path: Path) -> None:
    """Width 48 and MLP 88 in groups of 32."""
    folder = random_checkpoint(tmp_path / "ragged", family, 48, 88, 120, layers=2, heads=4)
    lowered = lower(open_checkpoint(folder), recipe, tmp_path / "lowered")
    assert lowered.recipe.weights is not None
    assert lowered.recipe.weights.group == lowered.recipe.head_group == 32
    assert list(lowered.stored.tensors["0.down.scale"].shape) == [3, 48]
    check_layout(lowered)
    check_fused(lowered, tmp_path)
    compare(lowered, de_quantized(lowered, tmp_path / "float"), TWO_FP32)


@each_family
def test_fp16_graphs_agree_as_fp16_can(family: str, tmp_path: Path) -> None:
    lowered = lower(golden(family), "fp16", tmp_path)
    check_layout(lowered)
    kinds = {name: tensor.dtype.name for name, tensor in lowered.stored.tensors.items()}
    assert {name for name, kind in kinds.items() if kind != "FLOAT16"} == {"suppress"}
    compare(lowered, lowered.checkpoint, FP16_ERROR)
    with pytest.raises(AssertionError):
        compare(lowered, lowered.checkpoint, TWO_FP32)  # it does compute in fp16


@each_family
@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w8a16-rtn"])
def test_quantized_graphs_compute_in_fp16_where_a_target_does(
    family: str, recipe: str, tmp_path: Path
) -> None:
    lowered = lower(golden(family), recipe, tmp_path, compute="fp16")
    check_fused(lowered, tmp_path)
    compare(lowered, de_quantized(lowered, tmp_path / "float"), FP16_ERROR)


def test_fp16_keeps_large_activations(tmp_path: Path) -> None:
    """Hidden states of some hundreds: their squares overflow fp16, RMSNorm sums them in fp32.

    The embedding is scaled up, and every norm takes the scale out again but for its epsilon; what
    the blocks add is then small, so that logits do not depend on rounding alone.
    """
    embed = golden("llada").tensor("embed")
    embed = embed * (500 / embed.abs().max())
    tensors = {"model.transformer.wte.weight": embed}
    checkpoint = open_checkpoint(golden_variant("llada", tmp_path / "a", tensors=tensors))
    lowered = lower(checkpoint, "fp16", tmp_path / "b")
    compare(lowered, checkpoint, FP16_ERROR)


def test_a_tied_head_is_stored_as_a_linear(tmp_path: Path) -> None:
    config = {"tie_word_embeddings": True}
    checkpoint = open_checkpoint(golden_variant("dream", tmp_path / "a", config))
    lowered = lower(checkpoint, "fp32", tmp_path / "b")
    # the embedding of the golden model is a head of larger logits: errors grow with them
    compare(lowered, checkpoint, 4 * TWO_FP32)


# What must never win


@each_family
@pytest.mark.parametrize("recipe", ["fp32", "w4a16-rtn"])
def test_mask_and_padding_never_win(family: str, recipe: str, tmp_path: Path) -> None:
    """A head that would always choose the mask id or a row behind the tokenizer's last id."""
    spec = golden(family).spec
    used = spec.mask_id + 2
    head = golden(family).tensor("head")
    head[spec.mask_id] *= 8
    head[used:] *= 8
    folder = golden_variant(family, tmp_path / "a", tensors={HEADS[family]: head})
    write_word_tokenizer(folder, used)
    lowered = lower(open_checkpoint(folder), recipe, tmp_path / "b", logits=True)
    never = {spec.mask_id, *range(used, spec.vocab_size)}
    names = [*SAMPLE.outputs, "logits"]
    got = ask(lowered.session(GraphKind(sample=True, logits=True)), spec, names, used)
    assert np.isin(got["logits"].argmax(-1), list(never)).mean() > 0.5
    assert not np.isin(got["id1"], list(never)).any()
    assert not np.isin(got["topk_ids"], list(never)).any()
    raw = got["logits"][:, np.arange(4, 32) - spec.shift].astype(np.float64)
    raw[..., list(never)] = -np.inf
    rest = np.exp(raw - raw.max(-1, keepdims=True)).sum(-1) - 1
    slack = 2.0**-20 * (1 + spec.vocab_size * rest)  # from the very logits: fp32 rounding alone
    assert (np.abs(got["rest"] - rest) <= slack).all()


def test_suppression_covers_mask_and_padding() -> None:
    spec = golden("llada").spec
    bias = suppression(spec, 203)
    never = [200, 203, 204, 205, 206, 207]
    assert (bias[never] == SUPPRESSED).all()
    assert bias.count_nonzero() == len(never)


@each_family
def test_a_special_id_behind_the_tokenizer_is_padding_too(family: str, tmp_path: Path) -> None:
    """The graph and the float model agree on what to suppress, whatever ids a config names."""
    spec = golden(family).spec
    folder = golden_variant(family, tmp_path / "a")
    write_word_tokenizer(folder, min(spec.special_ids))
    lowered = lower(open_checkpoint(folder), "fp32", tmp_path / "b")
    compare(lowered, lowered.checkpoint, TWO_FP32)
    got = ask(lowered.session(SAMPLE), spec, SAMPLE.outputs, min(spec.special_ids))
    assert not np.isin(got["topk_ids"], spec.special_ids).any()


# Overflow


@each_family
@pytest.mark.parametrize("name", ["embed", "head", "down", "final_norm"])
def test_fp16_overflow_names_tensor_and_value(family: str, name: str, tmp_path: Path) -> None:
    checkpoint = golden(family)
    block = 1 if name == "down" else None
    tensor = checkpoint.tensor(name, block)
    tensor.view(-1)[7] = -70000.0
    upstream = checkpoint.family.tensors[name].format(i=1)
    spoilt = open_checkpoint(golden_variant(family, tmp_path / "a", tensors={upstream: tensor}))
    with pytest.raises(UserError, match=f"{name}` holds a value of size 70000.*65504") as error:
        lower(spoilt, "fp16", tmp_path / "b")
    assert "fp32" in error.value.hint
    lower(spoilt, "fp32", tmp_path / "c")


def test_the_largest_fp16_value_fits() -> None:
    largest = torch.tensor([65504.0, -65504.0])
    content = as_bytes("x", largest, ir.DataType.FLOAT16)
    assert np.frombuffer(content, np.float16).tolist() == [65504.0, -65504.0]
