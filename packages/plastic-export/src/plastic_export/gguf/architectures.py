"""The architectures that are written as GGUF: names, metadata, and what of the numbers changes.

What stands here was compared with llama.cpp, model by model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


def _nothing(config: Config) -> str:
    return ""


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp, for a type of model.

    Attributes:
        name: Its name in GGUF, such as ``"llama"``.
        interleaved: Whether llama.cpp rotates neighbours, where mlx-lm rotates halves.
        unit_offset: Whether the norms multiply by ``1 + weight``.
        add: Adds metadata of its own.
        refusal: Says which setting of a configuration llama.cpp has no place for; else empty.
    """

    name: str
    interleaved: bool = False
    unit_offset: bool = False
    add: Callable[[Any, Config], None] | None = None
    refusal: Callable[[Config], str] = _nothing


def _add_gemma2(writer: Any, config: Config) -> None:
    writer.add_attn_logit_softcapping(config.get("attn_logit_softcapping", 50.0))
    writer.add_final_logit_softcapping(config.get("final_logit_softcapping", 30.0))
    writer.add_sliding_window(config.get("sliding_window", 4096))


def _refuse_gemma2(config: Config) -> str:
    scalar, width = config.get("query_pre_attn_scalar", 144), config.get("head_dim", 256)
    if scalar == width:
        return ""
    return f"its attention is scaled by 'query_pre_attn_scalar' {scalar}, not by its heads' {width}"


def _add_gemma3(writer: Any, config: Config) -> None:
    writer.add_sliding_window(config.get("sliding_window", 512))


def _refuse_gemma3(config: Config) -> str:
    pattern, local = (
        config.get("sliding_window_pattern", 6),
        config.get("rope_local_base_freq", 1e4),
    )
    if (pattern, local) != (6, 1e4):
        return f"its local blocks are not llama.cpp's (every {pattern}th is global, base {local})"
    return _refuse_gemma2({"query_pre_attn_scalar": 256, **config})


def _add_granite(writer: Any, config: Config) -> None:
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _refuse_smollm3(config: Config) -> str:
    layers, interval = config.get("no_rope_layers"), config.get("no_rope_layer_interval", 4)
    usual = [int((i + 1) % 4 != 0) for i in range(config["num_hidden_layers"])]
    if interval != 4 or (layers and list(layers) != usual):
        return "other blocks than every fourth are without a rotary embedding"
    return ""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", unit_offset=True),
    "gemma2": Architecture("gemma2", unit_offset=True, add=_add_gemma2, refusal=_refuse_gemma2),
    "gemma3_text": Architecture(
        "gemma3", unit_offset=True, add=_add_gemma3, refusal=_refuse_gemma3
    ),
    "granite": Architecture("granite", interleaved=True, add=_add_granite),
    "olmo2": Architecture("olmo2"),
    "seed_oss": Architecture("seed_oss"),
    "smollm3": Architecture("smollm3", interleaved=True, refusal=_refuse_smollm3),
}
"""Every one of them, by the ``model_type`` of mlx-lm."""
