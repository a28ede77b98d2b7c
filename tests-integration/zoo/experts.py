"""Mixtures of experts: tiny configurations, and the form in which they are published."""

from __future__ import annotations

import re

import mlx.core as mx

from zoo.dense import COMMON
from zoo.forms import (
    Config,
    Publish,
    Weights,
    add,
    add_prediction,
    add_rotary,
    form,
    fuse,
    rename,
    subtract_one,
    unstack,
)

ROUTED: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DEEPSEEK: Config = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
SLIDING = ["sliding_attention", "full_attention"]

CONFIGS: dict[str, Config] = {
    "Klear": {
        **COMMON,
        **ROUTED,
        "attention_bias": False,
        "mlp_only_layers": [0],
        "decoder_sparse_step": 1,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
    },
    "afmoe": {
        **COMMON,
        **ROUTED,
        "layer_types": SLIDING,
        "num_shared_experts": 1,
        "num_dense_layers": 1,
        "sliding_window": 64,
    },
    "bailing_moe": {
        "norm_head": True,
        **COMMON,
        **ROUTED,
        "num_shared_experts": 1,
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
        "topk_group": 1,
        "moe_router_enable_expert_bias": True,
        "score_function": "sigmoid",
        "use_qk_norm": True,
    },
    "dbrx": {
        "vocab_size": 512,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek": {
        **COMMON,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
    },
    "dots1": {**COMMON, **DEEPSEEK, "scoring_func": "noaux_tc"},
    "ernie4_5_moe": {
        **COMMON,
        "use_bias": False,
        "tie_word_embeddings": True,
        "moe_num_experts": 4,
        "moe_layer_start_index": 1,
        "moe_intermediate_size": 64,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    },
    "exaone_moe": {
        **COMMON,
        **ROUTED,
        "num_shared_experts": 1,
        "sliding_window": 64,
        "layer_types": SLIDING,
        "is_moe_layer": [False, True],
    },
    "glm4_moe": {
        **COMMON,
        **DEEPSEEK,
        "rope_scaling": None,
        "use_qk_norm": True,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
    "gpt_oss": {
        **COMMON,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
        "layer_types": SLIDING,
        "intermediate_size": 64,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    "granitemoe": {
        **COMMON,
        "logits_scaling": 1.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 4.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "hunyuan": {
        **COMMON,
        "attention_bias": False,
        "moe_topk": 2,
        "num_experts": 4,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
    },
    "laguna": {
        **COMMON,
        **ROUTED,
        "shared_expert_intermediate_size": 64,
        "layer_types": SLIDING,
        "mlp_layer_types": ["dense", "sparse"],
        "sliding_window": 64,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
            for kind in SLIDING
        },
    },
    "mellum": {
        **COMMON,
        **ROUTED,
        "norm_topk_prob": True,
        "sliding_window": 64,
        "layer_types": SLIDING,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in SLIDING
        },
    },
    "mimo_v2_flash": {
        **COMMON,
        **DEEPSEEK,
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "n_shared_experts": None,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": 64,
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "head_dim": 32,
        "v_head_dim": 16,
        "swa_head_dim": 32,
        "swa_v_head_dim": 16,
        "partial_rotary_factor": 0.5,
    },
    "minimax": {
        **COMMON,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 0,
        "rotary_dim": 8,
    },
    "mixtral": {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**COMMON, "num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {
        **COMMON,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0] * 8,
            "short_mscale": 1.0,
            "long_mscale": 1.0,
        },
        "original_max_position_embeddings": 512,
    },
    "phixtral": {
        "num_vocab": 512,
        "model_dim": 64,
        "num_heads": 4,
        "num_layers": 2,
        "rotary_dim": 8,
        "num_local_experts": 4,
    },
    "qwen2_moe": {**COMMON, **ROUTED, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {
        **COMMON,
        **ROUTED,
        "num_hidden_layers": 3,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
        "norm_topk_prob": True,
    },
    "solar_open": {
        **COMMON,
        **DEEPSEEK,
        "partial_rotary_factor": 1.0,
    },
    "step3p5": {
        **COMMON,
        "num_attention_groups": 2,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 64,
        "share_expert_dim": 64,
        "moe_layers_enum": "1",
        "layer_types": SLIDING,
        "sliding_window": 64,
        "attention_other_setting": {
            "num_attention_heads": 4,
            "num_attention_groups": 2,
            "head_dim": 16,
        },
    },
}
"""``config.json`` of each type; ``building`` adds ``model_type`` and what all have."""


ONE_BY_ONE = form(unstack())
IN_PLACE = form(unstack("experts"), add_rotary)
BY_NUMBER = form(
    unstack(),
    rename(
        (r"(experts\.\d+)\.gate_proj", r"\1.w1"),
        (r"(experts\.\d+)\.down_proj", r"\1.w2"),
        (r"(experts\.\d+)\.up_proj", r"\1.w3"),
    ),
)


def publish_dbrx(weights: Weights, config: Config) -> tuple[Weights, Config]:
    """Lay the experts of a layer one below the other, ``w2`` transposed."""
    for name in [name for name in weights if ".ffn.experts.0." in name]:
        matrices = [weights.pop(name.replace("experts.0.", f"experts.{n}.")) for n in range(4)]
        if ".w2." in name:
            matrices = [matrix.T for matrix in matrices]
        whole = re.sub(r"experts\.0\.(\w+)\.weight", r"experts.mlp.\1", name)
        weights[whole] = mx.concatenate(matrices, axis=0)
    return weights, config


def publish_gpt_oss(weights: Weights, config: Config) -> tuple[Weights, Config]:
    """Interleave the rows of gate and up, and pack the experts in mxfp4."""
    first = "experts.gate_proj.weight"
    for owner in [n.removesuffix("gate_proj.weight") for n in weights if n.endswith(first)]:
        for kind in ("weight", "bias"):
            halves = [weights.pop(f"{owner}{part}_proj.{kind}") for part in ("gate", "up")]
            weights[f"{owner}gate_up_proj.{kind}"] = mx.stack(halves, axis=2).flatten(1, 2)
        for part in ("gate_up_proj", "down_proj"):
            packed, scales, *_ = mx.quantize(
                weights.pop(f"{owner}{part}.weight"), 32, 4, mode="mxfp4"
            )
            blocks = packed.view(mx.uint8).reshape(*scales.shape, 16)
            weights |= {f"{owner}{part}_blocks": blocks, f"{owner}{part}_scales": scales}
            weights[f"{owner}{part}_bias"] = weights.pop(f"{owner}{part}.bias")
    left = [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ]
    packing = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    return weights, config | {"quantization_config": packing}


PUBLISHED: dict[str, Publish] = {
    "Klear": form(unstack("experts")),
    "afmoe": IN_PLACE,
    "bailing_moe": form(unstack(), rename((r"gate\.gate_proj", "gate"))),
    "dbrx": publish_dbrx,
    "deepseek": ONE_BY_ONE,
    "dots1": IN_PLACE,
    "ernie4_5_moe": form(
        unstack(), add_prediction("model.mtp_block.0"), add("model.mtp_linear_proj.0.weight")
    ),
    "exaone_moe": form(
        unstack(), rename((r"gate\.e_score", "e_score")), add_prediction("mtp.layers.0")
    ),
    "glm4_moe": form(unstack(), add_prediction("model.layers.2")),
    "gpt_oss": publish_gpt_oss,
    "granitemoe": form(
        fuse(("switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight"), "input_linear.weight"),
        rename((r"switch_mlp\.down_proj", "output_linear")),
    ),
    "hunyuan": ONE_BY_ONE,
    "laguna": form(
        unstack(),
        rename((r"mlp\.gate\.proj", "mlp.gate"), (r"gate\.e_score", "experts.e_score")),
    ),
    "mellum": ONE_BY_ONE,
    "mimo_v2_flash": form(unstack(), add_prediction("model.mtp.layers.0")),
    "minimax": BY_NUMBER,
    "mixtral": BY_NUMBER,
    "olmoe": ONE_BY_ONE,
    "phimoe": BY_NUMBER,
    "phixtral": form(unstack("switch_mlp", "mlp")),
    "qwen2_moe": ONE_BY_ONE,
    "qwen3_moe": ONE_BY_ONE,
    "solar_open": form(unstack(), add_prediction("model.layers.2")),
    "step3p5": form(
        subtract_one(r"norm\.weight"),
        rename(
            (r"mlp\.switch_mlp", "moe"),
            (r"mlp\.gate\.gate", "moe.gate"),
            (r"mlp\.gate\.router_bias", "moe.router_bias"),
            (r"mlp\.share_expert", "share_expert"),
        ),
        add_prediction("model.layers.2"),
    ),
}
"""Types whose published form is another than mlx-lm's, and the function that makes it."""
