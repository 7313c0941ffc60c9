"""Checkpoints and lowered bundles that tests of the exporter start from: plain functions."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.graph_kind import GraphKind, graph_kinds
from exporter.graph_rules import PLAIN, GraphRules
from exporter.linear_groups import block_groups, group_of_each
from exporter.lower import write_graphs, write_weights
from exporter.operator_use import OperatorUse
from exporter.progress import Progress
from exporter.prompts import used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.quantize import Quantized
from exporter.quantized_block import QuantizedBlock
from exporter.recipes import Recipe, Storage, make_recipe
from exporter.runtime.bundle import Bundle, Graph, RuntimeFacts
from exporter.runtime.session import Array, Bools, Ints
from exporter.runtime.session_ort import OrtSession, open_session
from exporter.runtime.settings import Settings
from exporter.weights_file import Stored
from passes.numerics import WeightGrid
from passes.weights.rtn import round_to_nearest

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_FAMILIES = ("llada", "dream")
MASK_IDS = {"llada2": 206, "lladamoe": 211}  # of those whose configurations carry none
CANVAS = 64
KINDS = tuple(graph_kinds(False))

# Every fp32 evaluation of the golden models stays within this of the one in float64 (measured where
# the golden logits were made); errors are linear in the unit roundoff to first order.
FP32_ERROR = 8e-5
TWO_FP32 = 2e-4  # two fp32 evaluations: twice that, rounded up to the tolerance of the golden set
LARGE = 2 * float(np.finfo(np.float32).eps)  # share of the logits of suppressed ids that they lose
FP16_ERROR = FP32_ERROR * 2**13 + FP32_ERROR  # 11 bits of precision against 24


def golden(family: str) -> Checkpoint:
    """A golden checkpoint."""
    return open_checkpoint(GOLDEN / family, MASK_IDS.get(family))


@dataclass(frozen=True)
class LogitsCase:
    """Upstream's raw logits (B, S, V) for ids (B, S); rows where key_mask is false mean nothing."""

    name: str
    ids: Ints
    key_mask: Bools
    logits: Array
    block_length: int | None = None  # of the block-causal mask; None: every position sees all


def logits_cases(family: str) -> list[LogitsCase]:
    """All golden logits of a family."""
    arrays = np.load(GOLDEN / family / "logits.npz")
    found = []
    for case in json.loads((GOLDEN / family / "cases.json").read_text()):
        if case["kind"] == "logits":
            ids = np.asarray(case["input_ids"], np.int64)
            mask = case["attention_mask"]
            keep = np.ones_like(ids, np.bool_) if mask is None else np.asarray(mask, np.bool_)
            logits = arrays[case["expected"]["array"]]
            found.append(LogitsCase(case["id"], ids, keep, logits, case["block_length"]))
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Path:
    """A checkpoint folder of one weight file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def golden_variant(
    family: str,
    folder: Path,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """A copy of a golden checkpoint with other configuration values and tensors."""
    old = load_file(GOLDEN / family / "model.safetensors")
    merged = {**config_of(GOLDEN / family), **(config or {})}
    return write_checkpoint(folder, merged, {**old, **(tensors or {})})


def random_checkpoint(
    folder: Path, family: str, width: int, mlp: int, vocab: int, layers: int, heads: int
) -> Path:
    """A checkpoint of a golden family's layout with other sizes and random weights.

    Dream keeps its two query heads a key head. Weights are scaled so that hidden states stay of
    order 1, whatever the sizes.
    """
    old = config_of(GOLDEN / family)
    kv = width * old.get("num_key_value_heads", 4) // 4
    sizes = {64: width, 160: mlp, old["vocab_size"]: vocab, 32: kv}
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in load_file(GOLDEN / family / "model.safetensors").items():
        index = next((int(p) for p in name.split(".") if p.isdecimal()), 0)
        shape = [sizes[n] for n in tensor.shape]
        made = torch.randn(shape, generator=draw) / shape[-1] ** 0.5
        if index < layers:
            tensors[name] = 1 + 0.1 * made if "norm" in name or "ln_f" in name else made
    if family == "dream":
        new = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers}
        new |= {"num_attention_heads": heads, "num_key_value_heads": heads // 2}
    else:
        new = {"d_model": width, "mlp_hidden_size": mlp, "n_layers": layers}
        new |= {"n_heads": heads, "n_kv_heads": heads, "embedding_size": vocab}
    ids = {"mask_token_id": vocab - 1}
    ids |= {f"{name}_token_id": vocab - 2 for name in ("eos", "pad", "bos")}
    return write_checkpoint(folder, {**old, **new, **ids, "vocab_size": vocab}, tensors)


def write_word_tokenizer(folder: Path, words: int) -> None:
    """tokenizer.json with the words w0, w1 … of ids 0, 1 …"""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


@dataclass(frozen=True)
class Lowered:
    """A checkpoint's graphs, as a bundle that the decode loop's session can open."""

    checkpoint: Checkpoint
    recipe: Recipe
    stored: Stored
    quantized: Quantized | None
    bundle: Bundle

    @property
    def weights(self) -> Path:
        return self.bundle.folder / "graphs" / "weights.bin"

    @property
    def kinds(self) -> list[GraphKind]:
        return graph_kinds(False, self.checkpoint.spec.can_cast_shadow)

    def graph(self, kind: GraphKind) -> Path:
        return self.bundle.folder / "graphs" / f"{kind.name}.onnx"

    def session(self, kind: GraphKind) -> OrtSession:
        """The graph `kind`, opened as the decode loop opens it."""
        wanted = frozenset(kind.outputs)
        return open_session(self.bundle, kind.guided, wanted, threads=1, cached=kind.cached)


def lower(
    checkpoint: Checkpoint,
    recipe_name: str,
    folder: Path,
    options: QuantOptions | None = None,
    logits: bool = False,
    compute: Storage = "fp32",
    rules: GraphRules = PLAIN,
    operators: OperatorUse | None = None,
) -> Lowered:
    """Round the linears to nearest where the recipe quantizes, and write weights and graphs."""
    spec = checkpoint.spec
    recipe = make_recipe(recipe_name, spec, options or QuantOptions(), compute)
    quantized = None
    if recipe.weights is not None:
        (folder / "work").mkdir(parents=True)
        quantized = Quantized(folder / "work", spec.layers)
        for index, block in enumerate(checkpoint.block(i) for i in range(spec.layers)):
            linears, groups = group_of_each(spec, index), block_groups(spec, index)
            rounded = {n: round_to_nearest(block.pop(n), recipe.weights) for n in linears}
            rows = {g.name: recipe.activation for g in groups if recipe.activation is not None}
            made = QuantizedBlock(block, rounded, activations=rows, attention=recipe.attention)
            quantized.save(index, made, [])
    draft = folder / "bundle"
    draft.mkdir(parents=True)
    described = describe_model(checkpoint, "0" * 64, used_vocabulary(checkpoint), CANVAS)
    facts = loop_facts(described)
    stored = write_weights(checkpoint, quantized, recipe, facts, draft, Progress())
    kinds = graph_kinds(logits, spec.can_cast_shadow)
    write_graphs(spec, stored, recipe, kinds, draft, operators, rules)
    graphs = tuple(
        Graph(k.name, f"graphs/{k.name}.onnx", k.guided, tuple(k.outputs), k.cached) for k in kinds
    )
    runtime = RuntimeFacts("onnxruntime", ("CPUExecutionProvider",), 0)
    bundle = Bundle(draft, facts, Settings(gen_length=16, block_length=8), runtime, graphs)
    return Lowered(checkpoint, recipe, stored, quantized, bundle)


def de_quantized(lowered: Lowered, folder: Path) -> Checkpoint:
    """A float checkpoint with the very weights that the quantized graphs of `lowered` hold."""
    checkpoint, recipe, quantized = lowered.checkpoint, lowered.recipe, lowered.quantized
    assert quantized is not None
    names = checkpoint.family.tensors
    embed, head = checkpoint.tensor("embed"), checkpoint.tensor("head")
    rounded = round_to_nearest(embed, WeightGrid(8)).dequantize()
    tensors = {
        names["embed"]: rounded if recipe.embed_bits == 8 else embed.half().float(),
        names["head"]: head
        if recipe.head_bits == 16
        else round_to_nearest(head, WeightGrid(8, recipe.head_group)).dequantize(),
    }
    for index in range(checkpoint.spec.layers):
        for name, linear in quantized.block(index).linears.items():
            tensors[names[name].format(i=index)] = linear.dequantize()
    old = load_file(checkpoint.folder / "model.safetensors")
    write_checkpoint(folder, config_of(checkpoint.folder), {**old, **tensors})
    if (checkpoint.folder / "tokenizer.json").is_file():
        shutil.copy(checkpoint.folder / "tokenizer.json", folder)
    return open_checkpoint(folder)


def check_reductions(
    got: Mapping[str, Array],
    want: Mapping[str, Array],
    logit_error: float,
    vocab: int,
    temperature: float = 1.0,
) -> None:
    """Assert that reductions differ by no more than logits with an error of `logit_error` allow.

    With δ the error of each logit: odds exp(l_j − l_1) are off by a factor exp(2 δ) (/ T inside);
    the gradient of the entropy is −p_j (ln p_j + H), of 1-norm at most 2 H, so that H is off by
    2 δ ln V; the k-th best logit by δ. On top comes fp32: V terms in a sum, and differences of
    logits up to 128, beyond which exp() is 0.
    """
    fp32 = (vocab + 128) * float(np.finfo(np.float32).eps)
    close = {
        "l1": np.full(want["l1"].shape, logit_error),
        "rest": want["rest"] * (np.expm1(2 * logit_error) + fp32) + 1e-30,
        "l_held": logit_error + LARGE * np.abs(want["l_held"]),
    }
    if "rest_t" in got:
        wide = np.expm1(2 * logit_error / temperature) + fp32 / min(temperature, 1.0)
        close |= {
            "l2": np.full(want["l2"].shape, logit_error),
            "rest_t": want["rest_t"] * wide + 1e-30,
            "entropy": np.full(want["l1"].shape, 2 * (logit_error + fp32) * np.log(vocab)),
            "topk_logits": logit_error + LARGE * np.abs(want["topk_logits"]),
        }
    for name, bound in close.items():
        worst = np.abs(got[name] - want[name]) - bound
        assert (worst <= 0).all(), f"{name} is off by {worst.max()} too much"
    sure = want["l1"] - want["l2"] > 2 * logit_error
    assert np.array_equal(got["id1"][sure], want["id1"][sure])
    if "topk_ids" in got:
        _check_top(got, want, logit_error)


def _check_top(got: Mapping[str, Array], want: Mapping[str, Array], logit_error: float) -> None:
    """Ids of both lists have close logits; an id of one alone lies at the end of both."""
    shape = (-1, got["topk_ids"].shape[-1])
    columns = [d[n].reshape(shape) for d in (got, want) for n in ("topk_ids", "topk_logits")]
    for ids, logits, other_ids, other_logits in zip(*columns, strict=True):
        known = dict(zip(other_ids.tolist(), other_logits.tolist(), strict=True))
        expected = np.asarray([known.get(i, other_logits[-1]) for i in ids.tolist()])
        assert (np.abs(logits - expected) <= logit_error + LARGE * np.abs(expected)).all()
        assert len(set(ids.tolist())) == len(ids)
