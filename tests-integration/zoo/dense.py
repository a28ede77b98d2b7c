"""Transformers without experts: tiny configurations, and the form in which they are published."""

from __future__ import annotations

import mlx.core as mx

from zoo.forms import (
    Config,
    Publish,
    Weights,
    add,
    add_prediction,
    add_rotary,
    each,
    form,
    rename,
    repeat_head,
    transpose,
)

COMMON: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
TIED: Config = {**COMMON, "tie_word_embeddings": True}
BIASED: Config = {**COMMON, "attention_bias": True, "mlp_bias": True}
GPT: Config = {
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 256,
    "n_ctx": 256,
    "n_inner": 128,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 512,
}
LAYER_NORM: Config = {**COMMON, "layer_norm_eps": 1e-5}
NAS: Config = {"n_heads_in_group": 2}

CONFIGS: dict[str, Config] = {
    "afm7": {
        "vocab_size": 512,
        "hidden_dim": 64,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 1.5,
    },
    "apertus": {**TIED, "mlp_bias": False, "attention_bias": False, "post_norm": False}
    | {"qk_norm": True},
    "bitnet": TIED,
    "cohere": {**LAYER_NORM, "logit_scale": 1.0, "use_qk_norm": True},
    "cohere2": {**LAYER_NORM, "logit_scale": 1.0, "sliding_window": 8, "sliding_window_pattern": 2},
    "ernie4_5": {**TIED, "use_bias": True},
    "exaone": {**COMMON, "num_layers": 2, "layer_norm_epsilon": 1e-5},
    "exaone4": {**TIED, "rope_scaling": {"rope_type": "default"}}
    | {"layer_types": ["sliding_attention", "full_attention"]}
    | {"sliding_window": 8, "sliding_window_pattern": "LG"},
    "gemma": COMMON,
    "gemma2": {**COMMON, "query_pre_attn_scalar": 16},
    "gemma3_text": {**TIED, "query_pre_attn_scalar": 16, "sliding_window": 8}
    | {"sliding_window_pattern": 2},
    "glm": TIED,
    "glm4": {**COMMON, "attention_bias": True, "partial_rotary_factor": 0.5},
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": {**LAYER_NORM, "rotary_emb_base": 10000, "rotary_pct": 0.25}
    | {"num_key_value_heads": None},
    "gptj": {**GPT, "rotary_dim": 8},
    "granite": {**TIED, "attention_bias": False, "mlp_bias": False}
    | {"logits_scaling": 1.0, "attention_multiplier": 0.25}
    | {"embedding_multiplier": 8.0, "residual_multiplier": 0.5},
    "helium": {**COMMON, "attention_bias": False, "mlp_bias": False},
    "hunyuan_v1_dense": TIED,
    "internlm2": {**COMMON, "bias": False},
    "internlm3": {**COMMON, "bias": True, "qkv_bias": True},
    "iquestloopcoder": {**COMMON, "loop_window_size": 8},
    "lille-130m": {**GPT, "block_size": 256, "n_kv_heads": 2}
    | {"layer_norm_eps": 1e-5, "rope_theta": 10000.0},
    "llama": COMMON,
    "mimo": {**COMMON, "num_nextn_predict_layers": 1},
    "minicpm": {**COMMON, "dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 8},
    "ministral3": {
        **COMMON,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 256,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mistral": {**COMMON, "sliding_window": None},
    "nanbeige": {**COMMON, "num_loops": 2},
    "nanochat": {**COMMON, "num_key_value_heads": 4},
    "nemotron": {**COMMON, "hidden_act": "relu2", "norm_eps": 1e-5},
    "nemotron-nas": {
        **COMMON,
        "block_configs": [
            {"attention": NAS, "ffn": {"ffn_mult": 1.5}},
            {"attention": NAS, "ffn": {"replace_with_linear": True}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
        ],
        "num_hidden_layers": 4,
    },
    "olmo2": COMMON,
    "olmo3": {**COMMON, "sliding_window": 8}
    | {"layer_types": ["sliding_attention", "full_attention"]},
    "openelm": {
        "head_dim": 16,
        "num_transformer_layers": 2,
        "model_dim": 64,
        "vocab_size": 512,
        "ffn_dim_divisor": 32,
        "num_query_heads": [4, 6],
        "num_kv_heads": [2, 3],
        "ffn_multipliers": [1.0, 1.5],
    },
    "phi": {**LAYER_NORM, "partial_rotary_factor": 0.5},
    "phi3": COMMON,
    "plamo": {**COMMON, "n_shared_head": 2},
    "plamo3": {**TIED, "window_size": 8, "sliding_window_pattern": 2},
    "qwen": {**COMMON, "kv_channels": 16, "intermediate_size": 192},
    "qwen2": TIED,
    "qwen3": TIED,
    "seed_oss": {**TIED, "attention_bias": True},
    "smollm3": {**TIED, "no_rope_layers": [1, 0]},
    "spark2_5": {
        **TIED,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    },
    "stablelm": {**LAYER_NORM, "use_qkv_bias": True, "partial_rotary_factor": 0.25},
    "starcoder2": {**TIED, "norm_epsilon": 1e-5},
    "talkie": {**COMMON, "num_key_value_heads": 4},
    "telechat3": BIASED,
}
"""``config.json`` of each type; ``building`` adds ``model_type`` and what all have."""

TWINS: dict[str, dict[str, str]] = {"minicpm": {"lm_head.weight": "model.embed_tokens.weight"}}
"""Types that load one tensor of their published form as two parameters: the second, the first."""


def scale(name: str, factor: float = 0.5) -> Publish:
    """Store a matrix divided by a scale that lies beside it, and a scale of its inputs."""

    def publish(weights: Weights, config: Config) -> tuple[Weights, Config]:
        scales = {
            f"{name}.weight_scale_inv": mx.array(factor, mx.bfloat16),
            f"{name}.activation_scale": mx.array(1.0, mx.bfloat16),
        }
        weights[f"{name}.weight"] = weights[f"{name}.weight"] / scales[f"{name}.weight_scale_inv"]
        return weights | scales, config

    return publish


def as_vector(name: str, tensor: mx.array) -> Weights:
    """Store the numbers of an activation as vectors of one."""
    return {name: tensor.reshape(1) if name.endswith(("alpha_p", "alpha_n")) else tensor}


rotary = form(add_rotary)
tied = form(repeat_head, add_rotary)
internlm = form(add("model.layers.0.attention.rope.inv_freq", columns=8))

PUBLISHED: dict[str, Publish] = {
    "apertus": form(each(as_vector), repeat_head),
    "bitnet": tied,
    "glm": tied,
    "gpt2": form(
        transpose(r"\.(c_attn|c_proj|c_fc)\.weight$", 0, 1),
        rename((r"^model\.", "")),
        add("h.0.attn.bias", "h.1.attn.bias"),
    ),
    "gpt_neox": form(
        rename(
            (r"^model\.h\.", "gpt_neox.layers."),
            (r"^model\.embed_out\.", "embed_out."),
            (r"^model\.", "gpt_neox."),
        ),
        add(
            "gpt_neox.layers.0.attention.bias",
            "gpt_neox.layers.0.attention.masked_bias",
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        ),
    ),
    "gptj": form(
        rename((r"^model\.", "transformer.")),
        add("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"),
    ),
    "granite": form(repeat_head),
    "hunyuan_v1_dense": form(repeat_head),
    "internlm2": internlm,
    "internlm3": internlm,
    "lille-130m": form(add("layers.0.attention.rotary_emb.inv_freq", columns=8)),
    "llama": rotary,
    "mimo": form(add_prediction("model.mtp_layers.0"), add_rotary),
    "minicpm": form(lambda weights: {n: w for n, w in weights.items() if n != "lm_head.weight"}),
    "ministral3": scale("model.layers.0.self_attn.q_proj"),
    "mistral": rotary,
    "nanbeige": rotary,
    "olmo2": rotary,
    "plamo3": form(repeat_head),
    "qwen2": tied,
    "qwen3": form(repeat_head),
    "seed_oss": form(repeat_head),
    "smollm3": tied,
    "spark2_5": form(
        rename((r"^model\.embedding\.", "model.embed_tokens.")), repeat_head, add_rotary
    ),
    "talkie": form(add("model.cos", "model.sin")),
}
"""Types whose published form is another than mlx-lm's, and the function that makes it."""
