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


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", unit_offset=True),
    "gemma2": Architecture("gemma2", unit_offset=True, add=_add_gemma2, refusal=_refuse_gemma2),
}
"""Every one of them, by the ``model_type`` of mlx-lm."""
