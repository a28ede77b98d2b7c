"""Transformers without experts: tiny configurations, and the form in which they are published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

Weights = dict[str, mx.array]
Config = dict[str, Any]
Publish = Callable[[Weights, Config], tuple[Weights, Config]]

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

CONFIGS: dict[str, Config] = {
    "llama": {**COMMON, "architectures": ["LlamaForCausalLM"]},
    "mistral": {**COMMON, "architectures": ["MistralForCausalLM"]},
    "qwen2": {**COMMON, "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
}
"""``config.json`` of each type; ``building`` adds ``model_type`` and what all have."""


def published_llama(weights: Weights, config: Config) -> tuple[Weights, Config]:
    """Return the weights with the rotary frequencies that old checkpoints hold beside them."""
    frequencies = 10000.0 ** (-mx.arange(0, 16, 2) / 16)
    rotary = {
        f"model.layers.{n}.self_attn.rotary_emb.inv_freq": frequencies
        for n in range(config["num_hidden_layers"])
    }
    return weights | rotary, config


PUBLISHED: dict[str, Publish] = {"llama": published_llama, "mistral": published_llama}
"""Types whose published form is another than mlx-lm's, and the function that makes it."""
