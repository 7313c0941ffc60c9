"""The table of model families: where upstream keeps each number and tensor, and the four axes.

A family is a row of data. What is computed from it stands in `model.py` and `lower.py`, which ask
for the properties below and never for a family's name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Json = Mapping[str, object]


@dataclass(frozen=True)
class Spec:
    """All facts about one model that the float model, the graphs and the decode loop need."""

    family: str
    layers: int
    width: int  # D
    heads: int  # H, query heads
    kv_heads: int
    head_dim: int  # K
    mlp_width: int
    vocab_size: int  # rows of the head, padding rows included
    max_length: int  # positions that the model was trained for
    norm_eps: float
    rope_theta: float
    qkv_bias: bool
    qk_norm: bool  # RMSNorm per head on queries and keys, before the rotary embedding
    tied: bool  # the head is the embedding
    attention: Literal["full", "block-causal"]
    block_length: int | None  # of a block-causal mask, in tokens
    shift: bool  # row i of the logits predicts position i + 1
    corruption: Literal["absorbing", "uniform"]
    block_seed: Literal["mask", "token"]
    positions: Literal["absolute", "skip-padding"]  # skip-padding: left padding does not count
    mask_id: int
    eos_id: int | None
    eot_id: int | None
    pad_id: int
    bos_id: int | None

    @property
    def special_ids(self) -> list[int]:
        """End-of-text ids whose logits the decode loop can bias: eos, then eot."""
        return [i for i in (self.eos_id, self.eot_id) if i is not None]


def block_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Our names and shapes of one block's tensors; linears are (out, in)."""
    d, q, kv = spec.width, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "q": (q, d),
        "k": (kv, d),
        "v": (kv, d),
        "o": (d, q),
        "mlp_norm": (d,),
        "gate": (spec.mlp_width, d),
        "up": (spec.mlp_width, d),
        "down": (d, spec.mlp_width),
    }
    if spec.qkv_bias:
        shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if spec.qk_norm:
        shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    return shapes


def model_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Our keys and shapes of all tensors of a model."""
    outer = {"embed": (spec.vocab_size, spec.width), "final_norm": (spec.width,)}
    if not spec.tied:
        outer["head"] = (spec.vocab_size, spec.width)
    inner = block_shapes(spec)
    blocks = {f"{i}.{name}": shape for i in range(spec.layers) for name, shape in inner.items()}
    return {**outer, **blocks}


@dataclass(frozen=True)
class Family:
    """One row of the table. `keys` maps a field of `Spec` to the upstream configuration key."""

    name: str
    model_type: str
    architectures: tuple[str, ...]
    keys: Mapping[str, str]
    tensors: Mapping[str, str]  # our name -> upstream name, `{i}` is the block
    required: Mapping[
        str, tuple[object, ...]
    ]  # upstream key -> values that we compute; absent is fine
    attention: Literal["full", "block-causal"] = "full"
    shift: bool = False
    corruption: Literal["absorbing", "uniform"] = "absorbing"
    block_seed: Literal["mask", "token"] = "mask"
    positions: Literal["absolute", "skip-padding"] = "absolute"
    qkv_bias: bool | str = False  # or the upstream key that tells
    qk_norm: bool = False
    eot_token: str | None = None  # text of the end-of-turn token in the tokenizer
    sampler: str = "low-confidence"  # what the upstream loop decodes with by default
    decode: Mapping[str, object] = field(default_factory=dict)  # other upstream decoding defaults


_HF_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tied": "tie_word_embeddings",
}

_HF_TENSORS = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "q": "model.layers.{i}.self_attn.q_proj.weight",
    "k": "model.layers.{i}.self_attn.k_proj.weight",
    "v": "model.layers.{i}.self_attn.v_proj.weight",
    "o": "model.layers.{i}.self_attn.o_proj.weight",
    "q_bias": "model.layers.{i}.self_attn.q_proj.bias",
    "k_bias": "model.layers.{i}.self_attn.k_proj.bias",
    "v_bias": "model.layers.{i}.self_attn.v_proj.bias",
    "q_norm": "model.layers.{i}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{i}.self_attn.k_norm.weight",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm.weight",
    "gate": "model.layers.{i}.mlp.gate_proj.weight",
    "up": "model.layers.{i}.mlp.up_proj.weight",
    "down": "model.layers.{i}.mlp.down_proj.weight",
}

LLADA = Family(
    name="llada",
    model_type="llada",
    architectures=("LLaDAModelLM",),
    keys={
        "layers": "n_layers",
        "width": "d_model",
        "heads": "n_heads",
        "kv_heads": "n_kv_heads",
        "mlp_width": "mlp_hidden_size",
        "vocab_size": "embedding_size",
        "max_length": "max_sequence_length",
        "norm_eps": "rms_norm_eps",
        "rope_theta": "rope_theta",
        "tied": "weight_tying",
    },
    tensors={
        "embed": "model.transformer.wte.weight",
        "final_norm": "model.transformer.ln_f.weight",
        "head": "model.transformer.ff_out.weight",
        "attn_norm": "model.transformer.blocks.{i}.attn_norm.weight",
        "q": "model.transformer.blocks.{i}.q_proj.weight",
        "k": "model.transformer.blocks.{i}.k_proj.weight",
        "v": "model.transformer.blocks.{i}.v_proj.weight",
        "o": "model.transformer.blocks.{i}.attn_out.weight",
        "q_bias": "model.transformer.blocks.{i}.q_proj.bias",
        "k_bias": "model.transformer.blocks.{i}.k_proj.bias",
        "v_bias": "model.transformer.blocks.{i}.v_proj.bias",
        "mlp_norm": "model.transformer.blocks.{i}.ff_norm.weight",
        "gate": "model.transformer.blocks.{i}.ff_proj.weight",
        "up": "model.transformer.blocks.{i}.up_proj.weight",
        "down": "model.transformer.blocks.{i}.ff_out.weight",
    },
    required={
        "alibi": (False,),
        "rope": (True,),
        "layer_norm_type": ("rms",),
        "block_type": ("llama",),
        "activation_type": ("silu",),
        "include_bias": (False,),
        "bias_for_layer_norm": (False, None),
        "attention_layer_norm": (False,),
        "input_emb_norm": (False,),
        "scale_logits": (False,),
        "multi_query_attention": (False, None),
    },
    qkv_bias="include_qkv_bias",
    eot_token="<|eot_id|>",
)

DREAM = Family(
    name="dream",
    model_type="Dream",
    architectures=("DreamModel",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required={
        "hidden_act": ("silu",),
        "use_sliding_window": (False, None),
        "rope_scaling": (None,),
    },
    shift=True,
    positions="skip-padding",
    qkv_bias=True,
    eot_token="<|im_end|>",
    sampler="entropy",
)

FAMILIES = (LLADA, DREAM)
