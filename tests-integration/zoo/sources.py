"""Further forms of a few types: other types of numbers, and the packings of mlx-lm and others."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from zoo import experts, latent, vision
from zoo.forms import Config, Publish, Weights

BLOCK = 128
LARGEST_E4M3 = 448.0
KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "moe.gate.", "conv")
"""Parts of the names of matrices that are published as they are beside FP8 or INT4."""


def stored_as(dtype: mx.Dtype) -> Publish:
    """Store every tensor of floating point numbers in a type."""

    def publish(weights: Weights, config: Config) -> tuple[Weights, Config]:
        cast = {
            name: tensor.astype(dtype) if mx.issubdtype(tensor.dtype, mx.floating) else tensor
            for name, tensor in weights.items()
        }
        return cast, config | {"dtype": str(dtype).removeprefix("mlx.core.")}

    return publish


def packed(bits: int, group_size: int, mode: str, others: Config | None = None) -> Publish:
    """Pack matrices as ``mlx_lm.convert`` does; ``others`` are settings of single modules."""
    usual = {"group_size": group_size, "bits": bits, "mode": mode}
    others = others or {}

    def publish(weights: Weights, config: Config) -> tuple[Weights, Config]:
        stored: Weights = {}
        for name, tensor in weights.items():
            path = name.removesuffix(".weight")
            settings = others.get(path, usual if tensor.ndim > 1 else False)
            stored |= pack(path, tensor, settings) if settings else {name: tensor}
        settings = usual | others
        return stored, config | {"quantization": settings, "quantization_config": settings}

    return publish


def pack(path: str, weight: mx.array, settings: Config) -> Weights:
    """Return the tensors of a packed matrix."""
    parts = mx.quantize(weight, **settings)
    names = ("weight", "scales", "biases")
    return {f"{path}.{name}": part for name, part in zip(names, parts, strict=False)}


def rewritten(
    rewrite: Callable[[str, mx.array], Weights], quantization: Config, only: str = ""
) -> Publish:
    """Rewrite the matrices that are multiplied, or those among them whose names have a part."""

    def publish(weights: Weights, config: Config) -> tuple[Weights, Config]:
        stored: Weights = {}
        for name, tensor in weights.items():
            kept = tensor.ndim != 2 or only not in name or any(part in name for part in KEPT)
            stored |= {name: tensor} if kept else rewrite(name, tensor)
        return stored, config | {"quantization_config": quantization}

    return publish


def in_blocks(name: str, weight: mx.array) -> Weights:
    """Return e4m3 bytes with a scale for each block of 128 x 128."""
    rows, columns = weight.shape
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    beyond = [(0, down * BLOCK - rows), (0, across * BLOCK - columns)]
    whole = mx.pad(weight.astype(mx.float32), beyond)
    blocks = whole.reshape(down, BLOCK, across, BLOCK)
    scale = mx.abs(blocks).max(axis=(1, 3)) / LARGEST_E4M3
    scaled = (blocks / scale[:, None, :, None]).reshape(whole.shape)[:rows, :columns]
    return {name: mx.to_fp8(scaled), f"{name}_scale_inv": scale}


def in_powers_of_two(name: str, weight: mx.array) -> Weights:
    """Return e4m3 bytes with an exponent (E8M0) for each 32 values."""
    words, scales, *_ = mx.quantize(weight, 32, 8, mode="mxfp8")
    return {name: words.view(mx.uint8), f"{name}_scale_inv": scales}


def in_int4(name: str, weight: mx.array) -> Weights:
    """Return integers of 4 bits around zero and a scale for each 32 (compressed-tensors)."""
    rows, columns = weight.shape
    groups = weight.astype(mx.float32).reshape(rows, -1, 32)
    scale = (mx.abs(groups).max(axis=-1) / 7).astype(mx.bfloat16)
    rounded = mx.clip(mx.round(groups / scale[..., None].astype(mx.float32)) + 8, 0, 15)
    nibbles = rounded.astype(mx.uint32).reshape(rows, -1, 8)
    words = (nibbles << (4 * mx.arange(8, dtype=mx.uint32))).sum(-1).astype(mx.uint32)
    return {
        f"{name}_packed": words.view(mx.int32),
        f"{name}_scale": scale,
        f"{name}_shape": mx.array([rows, columns], mx.int32),
    }


def in_mxfp4(name: str, weight: mx.array) -> Weights:
    """Return mxfp4 as compressed-tensors names it."""
    words, scales, *_ = mx.quantize(weight, 32, 4, mode="mxfp4")
    return {f"{name}_packed": words.view(mx.uint8), f"{name}_scale": scales}


def in_awq(name: str, weight: mx.array) -> Weights:
    """Return AutoAWQ's layout: transposed, eight outputs in a word in the order 0 2 4 6 1 3 5 7."""
    columns = weight.astype(mx.float32).T
    groups = columns.reshape(-1, 32, columns.shape[1])
    low = groups.min(axis=1)
    scale = ((groups.max(axis=1) - low) / 15).astype(mx.float16)
    zero = mx.clip(mx.round(-low / scale), 0, 15)
    steps = mx.round(groups / scale[:, None].astype(mx.float32)) + zero[:, None]
    owner = name.removesuffix("weight")
    return {
        f"{owner}qweight": awq_words(mx.clip(steps, 0, 15).reshape(columns.shape)),
        f"{owner}qzeros": awq_words(zero),
        f"{owner}scales": scale,
    }


def awq_words(nibbles: mx.array) -> mx.array:
    """Pack eight columns in a word."""
    order = mx.array([0, 2, 4, 6, 1, 3, 5, 7])
    eights = nibbles.astype(mx.uint32).reshape(nibbles.shape[0], -1, 8)[..., order]
    words = (eights << (4 * mx.arange(8, dtype=mx.uint32))).sum(-1)
    return words.astype(mx.uint32).view(mx.int32)


def after(first: Publish, second: Publish) -> Publish:
    """Publish a form on top of another."""

    def publish(weights: Weights, config: Config) -> tuple[Weights, Config]:
        return second(*first(weights, config))

    return publish


FP8 = rewritten(in_blocks, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]})
INT4 = rewritten(
    in_int4, {"quant_method": "compressed-tensors", "format": "pack-quantized"}, only=".experts."
)
MIXED = {
    "model.layers.0.self_attn.v_proj": {"group_size": 32, "bits": 8, "mode": "affine"},
    "model.layers.1.mlp.down_proj": {"group_size": 32, "bits": 6, "mode": "affine"},
    "lm_head": False,
}

SOURCES: dict[str, dict[str, Publish]] = {
    "llama": {
        "float16": stored_as(mx.float16),
        "float32": stored_as(mx.float32),
        **{f"affine{bits}": packed(bits, 32, "affine") for bits in (2, 3, 4, 5, 6, 8)},
        "mixed": packed(4, 32, "affine", MIXED),
        "mxfp4": packed(4, 32, "mxfp4"),
        "mxfp8": packed(8, 32, "mxfp8"),
        "nvfp4": packed(4, 16, "nvfp4"),
        "awq": after(
            stored_as(mx.float16),
            rewritten(in_awq, {"quant_method": "awq", "bits": 4, "group_size": 32}),
        ),
    },
    "deepseek_v3": {
        "fp8": after(latent.PUBLISHED["deepseek_v3"], FP8),
        "affine4": packed(4, 32, "affine", {"model.layers.1.mlp.gate": False}),
    },
    "kimi_k2": {"int4": after(latent.PUBLISHED["kimi_k2"], INT4)},
    "kimi_k25": {"int4": after(vision.PUBLISHED["kimi_k25"], INT4)},
    "kimi_k3": {
        "mxfp4": after(
            vision.PUBLISHED["kimi_k3"],
            rewritten(
                in_mxfp4,
                {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"},
                only=".experts.",
            ),
        )
    },
    "minimax": {"fp8": after(experts.PUBLISHED["minimax"], FP8)},
    "mimo_v2_flash": {"fp8": after(experts.PUBLISHED["mimo_v2_flash"], FP8)},
    "minimax_m3_vl": {
        "mxfp8": after(
            vision.PUBLISHED["minimax_m3_vl"],
            rewritten(in_powers_of_two, {"quant_method": "mxfp8"}, only="language_model."),
        )
    },
    "qwen3_moe": {"affine4": packed(4, 32, "affine")},
}
"""Further forms of a type, by name, made from what mlx-lm stores."""
