"""Which tensors count as matrices: by place and shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from plastic_core.files import TensorInfo
from plastic_export.checkpoint.tensors import compressible

SIZES = {"BF16": 2, "F32": 4, "U32": 4, "I64": 8}


def tensors(**shapes: tuple[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, dtype, shape, 0, 0, Path("model.safetensors"))
        for name, (dtype, shape) in shapes.items()
    }


HELD = tensors(
    **{
        "model.embed_tokens.weight": ("BF16", (99, 8)),
        "model.layers.0.self_attn.qkv_proj.weight": ("BF16", (24, 8)),
        "model.layers.0.self_attn.qkv_proj.bias": ("BF16", (24,)),
        "model.layers.0.input_layernorm.weight": ("BF16", (8,)),
        "model.layers.0.mlp.gate.weight": ("BF16", (4, 8)),
        "model.layers.0.mlp.experts.3.w1.weight": ("F32", (16, 8)),
        "model.layers.0.mlp.shared_expert_gate.weight": ("BF16", (1, 8)),
        "model.layers.0.mlp.stack.weight": ("BF16", (4, 16, 8)),
        "model.layers.1.mlp.up_proj.weight": ("U32", (16, 1)),
        "model.layers.1.mlp.up_proj.scales": ("BF16", (16, 1)),
        "model.layers.1.mlp.table.weight": ("I64", (16, 8)),
        "lm_head.weight": ("BF16", (99, 8)),
    }
)
PROJECTIONS = [
    "model.layers.0.self_attn.qkv_proj.weight",
    "model.layers.0.mlp.experts.3.w1.weight",
]


def test_projections_are_taken_and_routers_embeddings_heads_and_stacks_are_not() -> None:
    assert compressible(HELD) == PROJECTIONS


def test_include_takes_what_stands_elsewhere_and_exclude_wins() -> None:
    assert compressible(HELD, include=["lm_head"]) == ["lm_head.weight"]
    assert compressible(HELD, exclude=["*experts*"]) == PROJECTIONS[:1]
    both = compressible(HELD, include=["*proj*", "lm_head*"], exclude=["lm_head"])
    assert both == PROJECTIONS[:1]


@pytest.mark.parametrize("options", [{"include": ["*none*"]}, {"exclude": ["*none*"]}])
def test_a_pattern_that_matches_nothing_is_named(options: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"'\*none\*' matches no matrix.*'model\.embed_tokens"):
        compressible(HELD, **options)


def test_nothing_left_to_compress_is_refused() -> None:
    with pytest.raises(ValueError, match="no matrix is left"):
        compressible(HELD, exclude=["*"])


def test_a_packed_weight_is_a_matrix_only_with_its_scales() -> None:
    packed = tensors(
        **{
            "model.layers.1.mlp.up_proj.weight": ("U32", (16, 2)),
            "model.layers.1.mlp.up_proj.scales": ("BF16", (16, 1)),
            "model.layers.1.mlp.hash.weight": ("U32", (16, 2)),
        }
    )
    assert compressible(packed) == ["model.layers.1.mlp.up_proj.weight"]
