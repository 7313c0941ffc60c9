"""Families without reference logits: random checkpoints in the upstream layout, computed by hand.

The layout and the axes are written out again here, in numpy and float64, from what upstream calls
its tensors; nothing of the table of families is read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save_file

from exporter.checkpoint import open_checkpoint
from exporter.errors import UserError
from exporter.families import Spec
from exporter.float_session import FloatModel

Floats = npt.NDArray[np.float64]
WIDTH, HEADS, KV, K, MLP, VOCAB, EXPERTS, OWN = 16, 4, 2, 6, 20, 30, 4, 8
THETA, EPS, LENGTH = 10000.0, 1e-6, 11
QWEN: dict[str, Any] = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "head_dim": K, "intermediate_size": MLP, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "rms_norm_eps": EPS, "rope_theta": THETA, "hidden_act": "silu",
    "tie_word_embeddings": False, "mask_token_id": 25, "eos_token_id": 26,
}  # fmt: skip
EXPERT_KEYS = {
    "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": OWN,
    "norm_topk_prob": True, "mlp_only_layers": [0], "decoder_sparse_step": 1,
}  # fmt: skip

# model_type, architecture, more keys, block length given, (bias, qk norm, block, shift, seed)
ROWS: dict[str, tuple[str, str, dict[str, Any], int | None, tuple[Any, ...]]] = {
    "dream-coder": ("Dream", "DreamModel", {}, None, (True, False, None, True, "mask")),
    "dream-reasoner": ("Dream", "DreamForCausalLM", {}, 4, (False, True, 4, False, "mask")),
    "fast-dllm-v2": ("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", {"bd_size": 3}, None,
                     (True, False, 3, True, "token")),
    "open-dcoder": ("qwen2", "Qwen2ForCausalLM", {}, None, (True, False, None, True, "mask")),
    "stable-diffcoder": ("llama", "StableDiffcoderForCausalLM", {}, None,
                         (False, False, 4, False, "mask")),
    "a2d-qwen3": ("a2d-qwen3", "A2DQwen3LMHeadModel", {}, None, (False, True, None, False, "mask")),
    "a2d-qwen3 in blocks": ("a2d-qwen3", "A2DQwen3LMHeadModel", {}, 5,
                            (False, True, 5, False, "mask")),
    "a2d-qwen2": ("a2d-qwen2", "A2DQwen2LMHeadModel", {}, None, (True, False, None, False, "mask")),
    "a2d-llama": ("a2d-llama", "A2DLlamaLMHeadModel", {}, None,
                  (False, False, None, False, "mask")),
    "sdar-moe": ("sdar_moe", "SDARMoeForCausalLM", {**EXPERT_KEYS, "block_size": 2}, None,
                 (False, True, 2, False, "mask")),
}  # fmt: skip


def random_tensors(bias: bool, qk_norm: bool, experts: bool) -> dict[str, npt.NDArray[np.float32]]:
    """Qwen's names; a second block with experts, if any."""
    rng, made = np.random.default_rng(0), {}

    def add(name: str, *shape: int) -> None:
        drawn = rng.standard_normal(shape) / shape[-1] ** 0.5
        made[name] = (1 + 0.2 * drawn if "norm" in name else drawn).astype(np.float32)

    def mlp(prefix: str, width: int) -> None:
        add(f"{prefix}.gate_proj.weight", width, WIDTH)
        add(f"{prefix}.up_proj.weight", width, WIDTH)
        add(f"{prefix}.down_proj.weight", WIDTH, width)

    add("model.embed_tokens.weight", VOCAB, WIDTH)
    for i in range(2):
        block = f"model.layers.{i}"
        for name, rows in (("q", HEADS * K), ("k", KV * K), ("v", KV * K)):
            add(f"{block}.self_attn.{name}_proj.weight", rows, WIDTH)
            if bias:
                add(f"{block}.self_attn.{name}_proj.bias", rows)
            if qk_norm and name != "v":
                add(f"{block}.self_attn.{name}_norm.weight", K)
        add(f"{block}.self_attn.o_proj.weight", WIDTH, HEADS * K)
        add(f"{block}.input_layernorm.weight", WIDTH)
        add(f"{block}.post_attention_layernorm.weight", WIDTH)
        if experts and i == 1:
            add(f"{block}.mlp.gate.weight", EXPERTS, WIDTH)
            for number in range(EXPERTS):
                mlp(f"{block}.mlp.experts.{number}", OWN)
        else:
            mlp(f"{block}.mlp", MLP)
    add("model.norm.weight", WIDTH)
    add("lm_head.weight", VOCAB, WIDTH)
    return made


def by_hand(w: dict[str, Floats], ids: list[int], block: int | None) -> Floats:
    """Logits (S, V) of one sequence without padding."""

    def norm(x: Floats, name: str) -> Floats:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * w[name])

    def linear(x: Floats, name: str) -> Floats:
        return np.asarray(x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0))

    def turn(x: Floats) -> Floats:  # (S, heads, K)
        z = x[..., : K // 2] + 1j * x[..., K // 2 :]
        angle = np.arange(len(x))[:, None] * THETA ** (-2 * np.arange(K // 2) / K)
        z = z * np.exp(1j * angle)[:, None]
        return np.concatenate([z.real, z.imag], -1)

    def gated(x: Floats, prefix: str) -> Floats:
        gate = linear(x, f"{prefix}.gate_proj")
        return linear(gate / (1 + np.exp(-gate)) * linear(x, f"{prefix}.up_proj"),
                      f"{prefix}.down_proj")  # fmt: skip

    def routed(x: Floats, prefix: str) -> Floats:
        out = np.zeros_like(x)
        for s, row in enumerate(x):
            scores = np.exp(linear(row, f"{prefix}.gate"))
            best = np.argsort(-scores)[:2]
            for e in best:
                share = scores[e] / scores[best].sum()
                out[s] += share * gated(row, f"{prefix}.experts.{e}")
        return out

    places = np.arange(len(ids))
    seen = np.ones((len(ids), len(ids)), bool)
    if block is not None:
        seen = places[None] // block <= places[:, None] // block
    x = w["model.embed_tokens.weight"][ids]
    for i in range(2):
        name = f"model.layers.{i}"
        h = norm(x, f"{name}.input_layernorm.weight")
        q, k, v = (
            linear(h, f"{name}.self_attn.{part}_proj").reshape(len(ids), -1, K) for part in "qkv"
        )
        if f"{name}.self_attn.q_norm.weight" in w:
            q = norm(q, f"{name}.self_attn.q_norm.weight")
            k = norm(k, f"{name}.self_attn.k_norm.weight")
        q, k = turn(q), turn(k)
        heads = []
        for head in range(HEADS):
            shared = head * KV // HEADS
            scores = np.where(seen, q[:, head] @ k[:, shared].T / K**0.5, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(p / p.sum(-1, keepdims=True) @ v[:, shared])
        x = x + linear(np.concatenate(heads, -1), f"{name}.self_attn.o_proj")
        h = norm(x, f"{name}.post_attention_layernorm.weight")
        experts = f"{name}.mlp.gate.weight" in w
        x = x + (routed(h, f"{name}.mlp") if experts else gated(h, f"{name}.mlp"))
    return linear(norm(x, "model.norm.weight"), "lm_head")


def write(folder: Path, row: str) -> dict[str, Floats]:
    kind, architecture, keys, _, (bias, qk_norm, *_) = ROWS[row]
    tensors = random_tensors(bias, qk_norm, "num_experts" in keys)
    config = {**QWEN, **keys, "model_type": kind, "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return {name: tensor.astype(np.float64) for name, tensor in tensors.items()}


@pytest.mark.parametrize("row", ROWS)
def test_a_random_checkpoint_computes_what_is_computed_by_hand(row: str, tmp_path: Path) -> None:
    weights, (_, _, _, given, axes) = write(tmp_path, row), ROWS[row]
    _, _, block, shift, seed = axes
    checkpoint = open_checkpoint(tmp_path, block_length=given)
    spec: Spec = checkpoint.spec
    assert (spec.block_length, spec.shift, spec.block_seed) == (block, shift, seed)
    assert spec.attention == ("full" if block is None else "block-causal")
    ids = np.random.default_rng(1).integers(0, VOCAB, LENGTH)
    found = FloatModel(checkpoint).logits(
        torch.from_numpy(ids)[None], torch.ones(1, LENGTH, dtype=torch.bool)
    )[0]
    want = by_hand(weights, ids.tolist(), block)
    # fp32 against float64: two blocks of some ten sums of up to 24 products one after the other
    assert np.abs(found.numpy() - want).max() <= 2 * 10 * 24 * 2**-24 * np.abs(want).max()


def test_illada_is_opened_by_its_name(tmp_path: Path) -> None:
    """Whatever its configuration calls it; the embedding is the head, the mask id a default."""
    tensors = random_tensors(False, False, False)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    config = {**QWEN, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    config |= {"tie_word_embeddings": True, "mask_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({n: t for n, t in tensors.items() if n != "lm_head.weight"},
              tmp_path / "model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match="not known") as error:
        open_checkpoint(tmp_path)
    assert "iLLaDA with --family illada" in error.value.hint
    with pytest.raises(UserError, match="No family is called `ilada`"):
        open_checkpoint(tmp_path, family_name="ilada")
    checkpoint = open_checkpoint(tmp_path, family_name="illada")
    spec = checkpoint.spec
    assert (spec.family, spec.attention, spec.shift) == ("illada", "full", False)
    assert (spec.mask_id, open_checkpoint(tmp_path, 7, family_name="illada").spec.mask_id) == (5, 7)
    ids = np.random.default_rng(1).integers(0, VOCAB, LENGTH)
    everyone = torch.ones(1, LENGTH, dtype=torch.bool)
    found = FloatModel(checkpoint).logits(torch.from_numpy(ids)[None], everyone)[0]
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    want = by_hand(weights, ids.tolist(), None)
    assert np.abs(found.numpy() - want).max() <= 2 * 10 * 24 * 2**-24 * np.abs(want).max()


def test_blocks_have_the_length_that_upstream_trained_where_nothing_tells(tmp_path: Path) -> None:
    write(tmp_path, "dream-reasoner")
    assert open_checkpoint(tmp_path).spec.block_length == 32


def test_the_mask_token_of_the_tokenizer_counts(tmp_path: Path) -> None:
    """Where config.json carries no id."""
    write(tmp_path, "a2d-llama")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["mask_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="carries no mask_token_id"):
        open_checkpoint(tmp_path)
    listed = {"added_tokens": [{"id": 28, "content": "<|mask|>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(listed))
    for token in ("<|mask|>", {"content": "<|mask|>", "special": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": token}))
        assert open_checkpoint(tmp_path).spec.mask_id == 28


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None}, r"lacks \['num_experts'\]"),
        ({"num_experts": 0}, "num_experts = 0, not a positive number"),
        ({"num_experts_per_tok": 5}, "5 of 4 experts a token"),
        ({"mlp_only_layers": 1}, "mlp_only_layers = 1 with 2 blocks"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2, which is not implemented"),
    ],
)
def test_experts_that_cannot_be_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, "sdar-moe")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)
