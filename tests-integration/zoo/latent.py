"""Types with latent attention (MLA): tiny configurations, and the form that is published."""

from __future__ import annotations

from zoo.dense import COMMON
from zoo.experts import DEEPSEEK
from zoo.forms import (
    Config,
    Publish,
    add_prediction,
    add_rotary,
    add_tower,
    flatten,
    form,
    fuse,
    join_latent,
    rename,
    repeat_head,
    unstack,
)

LATENT: Config = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
}
YARN: Config = {
    "type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "rope_theta": 10000.0,
}
MIXED: Config = {**COMMON, **DEEPSEEK, **LATENT}
INDEXED: Config = {"index_head_dim": 32, "index_n_heads": 2, "index_topk": 16}
LONGCAT: Config = {
    **COMMON,
    **LATENT,
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 128,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 64,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "num_layers": 2,
    "routed_scaling_factor": 1.5,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "attention_bias": False,
}

CONFIGS: dict[str, Config] = {
    "deepseek_v2": {**MIXED, "topk_method": "greedy", "rope_scaling": YARN},
    "deepseek_v3": MIXED,
    "joyai_llm_flash": MIXED,
    "kimi_k2": MIXED,
    "deepseek_v32": {**MIXED, **INDEXED},
    "deepseek_v41": {
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "head_dim": 32,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "o_groups": 2,
            "o_lora_rank": 32,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "compress_ratios": [0, 4, 8, 0],
            "index_n_heads": 2,
            "index_head_dim": 32,
            "index_topk": 8,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 4,
            "max_position_embeddings": 512,
        },
    },
    "glm4_moe_lite": MIXED,
    "glm_moe_dsa": {
        **MIXED,
        **INDEXED,
        "attention_bias": False,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "longcat_flash": LONGCAT,
    "longcat_flash_ngram": {
        **LONGCAT,
        "ngram_vocab_size_ratio": 2,
        "emb_neighbor_num": 2,
        "emb_split_num": 2,
    },
    "minicpm3": {
        **COMMON,
        **LATENT,
        "dim_model_base": 32,
        "scale_depth": 1.4,
        "scale_emb": 12.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0] * 8,
            "original_max_position_embeddings": 512,
        },
    },
    "mistral4": {
        **MIXED,
        "rope_parameters": {**YARN, "rope_type": "yarn", "llama_4_scaling_beta": 0.1},
    },
    "youtu_llm": {**COMMON, **LATENT, "tie_word_embeddings": True},
}
"""``config.json`` of each type; ``building`` adds ``model_type`` and what all have."""


DEEPSEEK_V41 = (
    (r"^lm_head\.", "head."),
    (r"^model\.embed_tokens", "embed"),
    (r"^model\.", ""),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.attn_hc\.", ".hc_attn_"),
    (r"\.ffn_hc\.", ".hc_ffn_"),
    (r"\.sinks$", ".attn_sink"),
    (r"\.q_a_norm\.", ".q_norm."),
    (r"\.compressor\.kv_norm\.", ".compressor.norm."),
    (r"\.(q|o)_(a|b)_proj\.", r".w\1_\2."),
    (r"\.kv_proj\.", ".wkv."),
    (r"\.(compressor\..*|compressor)\.gate_proj\.", r".\1.wgate."),
    (r"\.indexer\.k_proj\.", ".indexer.wk."),
    (r"\.gate\.e_score_correction_bias", ".gate.bias"),
    (r"(experts(?:\.\d+)?)\.gate_proj", r"\1.w1"),
    (r"(experts(?:\.\d+)?)\.down_proj", r"\1.w2"),
    (r"(experts(?:\.\d+)?)\.up_proj", r"\1.w3"),
)
BEYOND_THE_LAST = form(unstack(), join_latent, add_prediction("model.layers.2"))

PUBLISHED: dict[str, Publish] = {
    "deepseek_v2": form(unstack()),
    "deepseek_v3": form(unstack(), join_latent, add_rotary, add_prediction("model.layers.61")),
    "joyai_llm_flash": form(unstack(), join_latent),
    "kimi_k2": form(unstack(), join_latent, add_rotary),
    "deepseek_v32": BEYOND_THE_LAST,
    "deepseek_v41": form(
        flatten(r"o_a_proj\.weight", 0, 1),
        unstack("experts.switch_mlp"),
        rename(*DEEPSEEK_V41),
        add_prediction("mtp.0"),
        add_tower("vision"),
    ),
    "glm4_moe_lite": BEYOND_THE_LAST,
    "glm_moe_dsa": BEYOND_THE_LAST,
    "longcat_flash": form(unstack(), join_latent, add_prediction("model.mtp.layers.0")),
    "longcat_flash_ngram": form(
        unstack(),
        join_latent,
        add_prediction("model.mtp.layers.0"),
        rename((r"ngram_embeddings\.word_embeddings", "embed_tokens")),
    ),
    "mistral4": form(
        fuse(("switch_mlp.gate_proj.weight", "switch_mlp.up_proj.weight"), "experts.gate_up_proj"),
        rename((r"switch_mlp\.down_proj\.weight", "experts.down_proj")),
        join_latent,
    ),
    "youtu_llm": form(repeat_head),
}
"""Types whose published form is another than mlx-lm's, and the function that makes it."""
