"""The table of model families: where upstream keeps each number and tensor, and the four axes.

A family is a row of data.
"""

from exporter.families import Family, Router

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

_QWEN = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "use_sliding_window": (False, None),
    "rope_scaling": (None,),
}

SDAR = Family(
    name="sdar",
    model_type="sdar",
    architectures=("SDARForCausalLM",),
    keys={**_HF_KEYS, "block_length": "block_size"},
    tensors=_HF_TENSORS,
    required={**_QWEN, "use_regular_causal": (False, None)},  # which has causal prompts
    attention="block-causal",
    block_length=4,
    positions="skip-padding",
    qk_norm=True,
    eot_token="<|im_end|>",
    sampler="sdar-dynamic",
)

_EXPERT_TENSORS = {
    "router": "model.layers.{i}.mlp.gate.weight",
    "gate_{e}": "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    "up_{e}": "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    "down_{e}": "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
}

LLADA_MOE = Family(
    name="lladamoe",
    model_type="lladamoe",
    architectures=("LLaDAMoEModelLM",),
    keys={**_HF_KEYS, "mlp_width": "dense_intermediate_size"},
    tensors=_HF_TENSORS | _EXPERT_TENSORS,
    required={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "clip_qkv": (None,),
        "qk_layernorm": (True,),
        "rope_scaling": (None,),
        "partial_rotary_factor": (1, None),
        "moe_router_score_function": ("softmax",),
        "moe_router_enable_expert_bias": (False,),
        "router_num_group": (None,),
        "router_topk_group": (None,),
        "routed_scaling_factor": (1, None),
        "shared_expert_intermediate_size": (None, 0),
    },
    qk_norm=True,
    eot_token="<|role_end|>",
    experts=Router(
        keys={
            "count": "num_experts",
            "per_token": "num_experts_per_tok",
            "width": "expert_intermediate_size",
        },
        score="softmax",
        dense="moe_layer_freq",
        dense_is="flags",
        renormalize=False,  # upstream's code never does, whatever norm_topk_prob says
    ),
)

# LLaDA 2.0 and 2.1. LLaDA 2.2 goes by the same names, but its configuration has an expert_capacity:
# it routes whole blocks of tokens, which is not implemented.
LLADA2 = Family(
    name="llada2",
    model_type="llada2_moe",
    architectures=("LLaDA2MoeModelLM",),
    keys={**_HF_KEYS, "rotary_share": "partial_rotary_factor"},
    tensors={
        **_HF_TENSORS,
        **_EXPERT_TENSORS,
        "embed": "model.word_embeddings.weight",
        "q": "model.layers.{i}.attention.query_key_value.weight",
        "k": "model.layers.{i}.attention.query_key_value.weight",
        "v": "model.layers.{i}.attention.query_key_value.weight",
        "o": "model.layers.{i}.attention.dense.weight",
        "q_norm": "model.layers.{i}.attention.query_layernorm.weight",
        "k_norm": "model.layers.{i}.attention.key_layernorm.weight",
        "expert_bias": "model.layers.{i}.mlp.gate.expert_bias",
        "shared_gate": "model.layers.{i}.mlp.shared_experts.gate_proj.weight",
        "shared_up": "model.layers.{i}.mlp.shared_experts.up_proj.weight",
        "shared_down": "model.layers.{i}.mlp.shared_experts.down_proj.weight",
    },
    required={
        "hidden_act": ("silu",),
        "use_bias": (False,),
        "use_qkv_bias": (False,),
        "use_qk_norm": (True,),
        "use_rmsnorm": (True,),
        "use_sliding_window": (False, None),
        "norm_head": (False,),
        "norm_topk_prob": (True,),
        "rope_scaling": (None,),
        "score_function": ("sigmoid",),
    },
    attention="block-causal",
    block_length=32,
    positions="skip-padding",
    qk_norm=True,
    eot_token="<|role_end|>",
    sampler="llada2-threshold",
    experts=Router(
        keys={
            "count": "num_experts",
            "per_token": "num_experts_per_tok",
            "width": "moe_intermediate_size",
            "groups": "n_group",
            "top_groups": "topk_group",
            "scale": "routed_scaling_factor",
        },
        score="sigmoid",
        dense="first_k_dense_replace",
        dense_is="count",
        renormalize=True,
        selection_bias=True,
        shared="num_shared_experts",
    ),
)

# The rows below have no reference logits. Their layout is that of Qwen2, Qwen3 or Llama, and their
# axes are what model cards and sources say; what is not even that says so.

SDAR_MOE = Family(
    name="sdar-moe",
    model_type="sdar_moe",  # not verified; the architecture is
    also=("sdar",),
    architectures=("SDARMoeForCausalLM",),
    keys=SDAR.keys,
    tensors=_HF_TENSORS | _EXPERT_TENSORS,
    required={**SDAR.required, "decoder_sparse_step": (1,)},
    attention="block-causal",
    block_length=4,
    positions="skip-padding",
    qk_norm=True,
    eot_token="<|im_end|>",
    sampler="sdar-dynamic",
    experts=Router(
        keys={
            "count": "num_experts",
            "per_token": "num_experts_per_tok",
            "width": "moe_intermediate_size",
        },
        score="softmax",
        dense="mlp_only_layers",
        dense_is="places",
        renormalize="norm_topk_prob",
    ),
)

DREAM_REASONER = Family(
    name="dream-reasoner",
    model_type="Dream",
    architectures=("DreamForCausalLM",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required=_QWEN,
    attention="block-causal",
    block_length=32,
    positions="skip-padding",
    qk_norm=True,
    eot_token="<|im_end|>",
    sampler="sdar-dynamic",
)

FAST_DLLM_V2 = Family(
    name="fast-dllm-v2",
    model_type="Fast_dLLM_Qwen",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    keys={**_HF_KEYS, "block_length": "bd_size"},
    tensors=_HF_TENSORS,
    required=DREAM.required,
    attention="block-causal",
    block_length=32,
    shift=True,
    block_seed="token",
    positions="skip-padding",
    qkv_bias=True,
    eot_token="<|im_end|>",
    sampler="fast-dllm-v2",
)

# Its configuration is that of Qwen2, so any Qwen2 opens that is given a mask id; not verified is
# how it counts positions behind left padding.
OPEN_DCODER = Family(
    name="open-dcoder",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required=DREAM.required,
    shift=True,
    qkv_bias=True,
    eot_token="<|im_end|>",
    sampler="p2",
)

# The name of its architecture is not verified, nor is the end of its turns.
STABLE_DIFFCODER = Family(
    name="stable-diffcoder",
    model_type="llama",
    architectures=("StableDiffcoderForCausalLM",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required={**_QWEN, "mlp_bias": (False, None)},
    attention="block-causal",
    block_length=4,
    positions="skip-padding",
    sampler="sdar-dynamic",
)


# What its configuration calls it is not verified: `--family illada` opens it. Like LLaDA in all
# that decides a graph, with Llama's tensors, shared key heads and the embedding as head.
ILLADA = Family(
    name="illada",
    model_type="illada",
    architectures=("iLLaDAModelLM",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required={**_QWEN, "mlp_bias": (False, None)},
    mask_id=5,
    eot_token="<|eot_id|>",
)

# NVIDIA's Ministral that was taught to fill blocks: the queries of long texts are scaled as in
# Llama 4. With `dlm_paradigm` other than this the released code masks otherwise.
NEMOTRON = Family(
    name="nemotron-labs-diffusion",
    model_type="nemotron_labs_diffusion",
    architectures=("NemotronLabsDiffusionModel",),
    keys={**_HF_KEYS, "rope_theta": "rope_parameters.rope_theta", "block_length": "block_size"},
    tensors={
        name: {"head": "diffusion_head.weight"}.get(name, upstream.replace("model.", "encoder."))
        for name, upstream in _HF_TENSORS.items()
    },
    required={
        **_QWEN,
        "mlp_bias": (False, None),
        "sliding_window": (None,),
        "dlm_paradigm": ("bidirectional",),
        "num_ar_layers": (0, None),
        "num_diffusion_layers": (0, None),
    },
    attention="block-causal",
    block_length=32,
    block_seed="token",
    commit="causal",
    positions="skip-padding",
    rope="rope_parameters",
    mask_id=100,
    sampler="nemotron",
)

# One checkpoint layout holds models trained with full attention (MDLM) and in blocks (BD3-LM).
A2D_QWEN3 = Family(
    name="a2d-qwen3",
    model_type="a2d-qwen3",
    architectures=("A2DQwen3LMHeadModel",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required={**_QWEN, "loophole_enabled": (False, None)},
    either=True,
    qk_norm=True,
    eot_token="<|im_end|>",
)

A2D_QWEN2 = Family(
    name="a2d-qwen2",
    model_type="a2d-qwen2",
    architectures=("A2DQwen2LMHeadModel",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required=DREAM.required,
    either=True,
    qkv_bias=True,
    eot_token="<|im_end|>",
)

A2D_LLAMA = Family(
    name="a2d-llama",
    model_type="a2d-llama",
    architectures=("A2DLlamaLMHeadModel",),
    keys=_HF_KEYS,
    tensors=_HF_TENSORS,
    required={**_QWEN, "mlp_bias": (False, None)},
    either=True,
    eot_token="<|eot_id|>",
)

FAMILIES = (
    LLADA,
    DREAM,
    SDAR,
    LLADA_MOE,
    LLADA2,
    SDAR_MOE,
    DREAM_REASONER,
    FAST_DLLM_V2,
    OPEN_DCODER,
    STABLE_DIFFCODER,
    ILLADA,
    NEMOTRON,
    A2D_QWEN3,
    A2D_QWEN2,
    A2D_LLAMA,
)
