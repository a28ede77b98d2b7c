"""Types with towers for pictures or sound: tiny configurations, and the form that is published."""

from __future__ import annotations

import mlx.core as mx

from zoo.dense import COMMON
from zoo.experts import ROUTED, SLIDING
from zoo.forms import (
    Config,
    Publish,
    Weights,
    add,
    add_prediction,
    add_tower,
    form,
    fuse,
    join_latent,
    rename,
    subtract_one,
    transpose,
    unstack,
)
from zoo.latent import LATENT, MIXED
from zoo.recurrent import CONFIGS as RECURRENT
from zoo.recurrent import CONVOLUTION, DELTA, EXPERTS_BY_NUMBER, NORMS_AROUND_ONE

QWEN3_5: Config = {
    **COMMON,
    **DELTA,
    "num_hidden_layers": 4,
    "full_attention_interval": 4,
    "model_type": "qwen3_5_text",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    },
}
QWEN3_MOE: Config = {
    **COMMON,
    **ROUTED,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "model_type": "qwen3_vl_moe_text",
}
QWEN3_VL: Config = {**COMMON, "model_type": "qwen3_vl_text"}
GEMMA3: Config = {
    **COMMON,
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": 16,
    "sliding_window": 64,
    "sliding_window_pattern": 2,
}
GEMMA4: Config = {
    **COMMON,
    "model_type": "gemma4_text",
    "tie_word_embeddings": True,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 32,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_global_key_value_heads": 1,
}
SITU: Config = {
    **COMMON,
    **LATENT,
    "model_type": "kimi_linear",
    "q_lora_rank": 32,
    "num_hidden_layers": 3,
    "linear_attn_config": {
        "kda_layers": [1, 3],
        "full_attn_layers": [2],
        "num_heads": 4,
        "head_dim": 32,
        "short_conv_kernel_size": 4,
    },
    "hidden_act": "situ",
    "activation_situ_beta": 1.0,
    "activation_situ_linear_beta": 1.0,
    "attn_res_block_size": 2,
    "num_experts": 4,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "routed_expert_hidden_size": 32,
    "latent_moe_use_norm": True,
    "mla_use_output_gate": True,
}

CONFIGS: dict[str, Config] = {
    "gemma3": {"vocab_size": 512, "text_config": GEMMA3},
    "gemma3n": {
        "text_config": {
            **COMMON,
            "model_type": "gemma3n_text",
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 512,
            "sliding_window": 64,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": SLIDING * 2,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
            "hidden_size_per_layer_input": 32,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 32,
            "intermediate_size": [128] * 4,
        },
    },
    "gemma4": {"vocab_size": 512, "text_config": GEMMA4},
    "gemma4_unified": {"vocab_size": 512, "text_config": GEMMA4},
    "gemma4_text": {
        **GEMMA4,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 64,
    },
    "kimi_k25": {"text_config": MIXED},
    "kimi_k3": {"text_config": SITU},
    "kimi_vl": {"text_config": MIXED},
    "lfm2-vl": {"text_config": {**RECURRENT["lfm2"], "model_type": "lfm2"}},
    "llama4": {
        "text_config": {
            **COMMON,
            "model_type": "llama4_text",
            "attention_bias": False,
            "attention_chunk_size": 64,
            "interleave_moe_layer_step": 2,
            "intermediate_size": 64,
            "intermediate_size_mlp": 128,
            "num_experts_per_tok": 1,
            "num_local_experts": 4,
            "rope_scaling": None,
            "use_qk_norm": True,
            "num_hidden_layers": 4,
        },
    },
    "llama4_text": {
        **COMMON,
        "intermediate_size_mlp": 128,
        "no_rope_layers": [1, 0],
        "use_qk_norm": True,
    },
    "minimax_m3_vl": {
        "text_config": {
            **COMMON,
            "model_type": "minimax_m3",
            "intermediate_size": 64,
            "dense_intermediate_size": 128,
            "shared_intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_layer_freq": [0, 1],
            "rotary_dim": 8,
            "sparse_attention_config": {
                "sparse_num_index_heads": 2,
                "sparse_index_dim": 16,
                "sparse_block_size": 16,
                "sparse_topk_blocks": 2,
                "sparse_local_block": 1,
                "sparse_attention_freq": [0, 1],
            },
        },
    },
    "mistral3": {
        "text_config": {
            **COMMON,
            "model_type": "ministral3",
            "rope_parameters": {
                "rope_type": "default",
                "type": "default",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 512,
                "llama_4_scaling_beta": 0.1,
            },
        },
    },
    "llava": {"text_config": {**COMMON, "model_type": "mistral"}},
    "muse_glimmer": {"text_config": {**COMMON, "layer_types": SLIDING, "sliding_window": 64}},
    "pixtral": {"text_config": {**COMMON, "model_type": "mistral"}},
    "qwen2_vl": {"text_config": {**COMMON, "model_type": "qwen2_vl_text"}},
    "qwen2_5_vl": {"text_config": {**COMMON, "model_type": "qwen2_5_vl_text"}},
    "qwen3_vl": {"text_config": QWEN3_VL},
    "qwen3_vl_moe": {"text_config": QWEN3_MOE},
    "qwen3_5": {"text_config": QWEN3_5},
    "qwen3_5_moe": {"text_config": {**QWEN3_5, **ROUTED, "shared_expert_intermediate_size": 64}},
    "prism_hadamard_qwen35": {
        "text_config": {**QWEN3_5, "intermediate_size": 128},
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {
                "path": f"model.layers.{n}.mlp.down_proj",
                "embedding": False,
                "dtype": "float16",
                "block": 0,
            }
            for n in range(2)
        ],
    },
}
"""``config.json`` of each type; ``building`` adds ``model_type`` and what all have."""


def split_projections(weights: Weights) -> Weights:
    """Store queries, keys and values, and their convolutions, one by one."""
    for name in [name for name in weights if "qkv_" in name]:
        single = name.replace("conv.conv.", "conv1d.")
        for part, third in zip("qkv", mx.split(weights.pop(name), 3), strict=True):
            weights[single.replace("qkv_", f"{part}_")] = third
    return weights


WITHIN_MODEL = rename(
    (r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head", "lm_head")
)
TOWER = (add_tower("vision_tower"), add("multi_modal_projector.linear_1.weight"))
FUSED = (
    fuse(("switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight"), "experts.gate_up_proj"),
    rename((r"switch_mlp\.down_proj\.weight", "experts.down_proj")),
)


def seeing(publish: Publish) -> Publish:
    """Name the tower in the configuration too."""
    tower = {"hidden_size": 64, "num_hidden_layers": 1, "model_type": "vision"}

    def publish_with_tower(weights: Weights, config: Config) -> tuple[Weights, Config]:
        weights, config = publish(weights, config)
        return weights, config | {"vision_config": tower}

    return publish_with_tower


TEXT_OF: dict[str, Publish] = {
    "gemma3": form(*TOWER),
    "gemma3n": form(
        add_tower("model.vision_tower"),
        add_tower("model.audio_tower"),
        add("model.embed_vision.embedding_projection.weight"),
    ),
    "gemma4": form(
        WITHIN_MODEL, add_tower("model.vision_tower"), add("model.embed_vision.p.weight")
    ),
    "gemma4_unified": form(WITHIN_MODEL, add_tower("model.vision_embedder")),
    "gemma4_text": form(
        fuse(("switch_glu.gate_proj.weight", "switch_glu.up_proj.weight"), "gate_up_proj"),
        rename((r"switch_glu\.down_proj\.weight", "down_proj")),
        add("model.layers.3.self_attn.k_proj.weight", "model.layers.3.self_attn.v_proj.weight"),
    ),
    "kimi_k25": form(
        unstack(), join_latent, add_tower("vision_tower"), add("mm_projector.p.weight")
    ),
    "kimi_k3": form(
        unstack(),
        rename((r"mlp\.e_score", "mlp.gate.e_score")),
        rename((r"mlp\.(experts|shared_experts|routed|gate\.)", r"block_sparse_moe.\1")),
        EXPERTS_BY_NUMBER,
        split_projections,
        transpose(r"conv1d\.weight"),
        join_latent,
        rename((r"_res_(proj|norm)\.weight", r"_res.\1_weight")),
        add_prediction("language_model.model.layers.3"),
        *TOWER,
    ),
    "kimi_vl": form(unstack(), *TOWER),
    "lfm2-vl": form(*TOWER),
    "llama4": form(
        fuse(("experts.gate_proj.weight", "experts.up_proj.weight"), "experts.gate_up_proj"),
        rename((r"experts\.down_proj\.weight", "experts.down_proj")),
        transpose(r"experts\.(gate_up|down)_proj$"),
        add_tower("vision_model"),
        add("multi_modal_projector.linear_1.weight"),
    ),
    "minimax_m3_vl": form(unstack(), EXPERTS_BY_NUMBER, *TOWER, add("patch_merge_mlp.0.weight")),
    "mistral3": form(
        WITHIN_MODEL, add_tower("model.vision_tower"), add("model.multi_modal_projector.p.weight")
    ),
    "llava": form(*TOWER),
    "muse_glimmer": form(
        rename((r"^model\.", "model.language_model.")),
        add_tower("vision_tower"),
        add("vision_projection.weight"),
    ),
    "pixtral": form(*TOWER),
    "qwen2_vl": form(rename((r"^language_model\.", "")), add_tower("visual")),
    "qwen2_5_vl": form(WITHIN_MODEL, add_tower("model.visual")),
    "qwen3_vl": form(WITHIN_MODEL, add_tower("model.visual")),
    "qwen3_vl_moe": form(
        *FUSED, transpose(r"experts\.(gate_up|down)_proj$"), WITHIN_MODEL, add_tower("model.visual")
    ),
    "qwen3_5": form(
        CONVOLUTION,
        subtract_one(NORMS_AROUND_ONE),
        WITHIN_MODEL,
        add_tower("model.visual"),
        add_prediction("mtp.layers.0"),
    ),
    "qwen3_5_moe": form(
        *FUSED,
        CONVOLUTION,
        subtract_one(NORMS_AROUND_ONE),
        WITHIN_MODEL,
        add_tower("model.visual"),
        add_prediction("mtp.layers.0"),
    ),
}
PUBLISHED: dict[str, Publish] = {
    name: seeing(publish) if "text_config" in CONFIGS[name] else publish
    for name, publish in TEXT_OF.items()
}
"""Types whose published form is another than mlx-lm's, and the function that makes it."""
