"""Codes of MLX as blocks of GGUF with the same codes: nothing is rounded but scales, to float16.

An affine code q of MLX stands for ``scale q + bias``, as one of Q4_1 and Q5_1 does for
``d q + m``. Groups of MLX are one, two or four blocks of 32 that share scale and bias.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_export.checkpoint.packing import Packing, unpacked
from plastic_export.folder.shards import as_float32
from plastic_export.gguf.encoding import BLOCK

Bytes = NDArray[np.uint8]


def block_type(packing: Packing) -> str | None:
    """Return the least type that holds the codes of a packing; None where there is none.

    Examples:
        >>> block_type(Packing(3, 64, "affine")), block_type(Packing(6, 64, "affine"))
        ('Q4_1', None)
    """
    if packing.mode != "affine" or packing.bits > 5:
        return None
    return "Q4_1" if packing.bits <= 4 else "Q5_1"


def same_code_rows(layer: Any, packing: Packing) -> Bytes:
    """Return the rows of a packed layer as blocks of its `block_type`, with the same codes.

    Args:
        layer: The packed layer of mlx-lm's model.
        packing: How it is packed.

    Returns:
        Shape (..., out, bytes of a row).
    """
    one, none = mx.ones_like(layer.scales), mx.zeros_like(layer.scales)
    codes = unpacked(layer.weight, one, none, packing).astype(np.uint8)
    blocks = codes.reshape(*codes.shape[:-1], codes.shape[-1] // BLOCK, BLOCK)
    repeats = packing.group_size // BLOCK
    scales, biases = (_as_bytes(a, repeats) for a in (layer.scales, layer.biases))
    parts = [scales, biases, *([_fifth_bits(blocks)] if packing.bits == 5 else []), _halves(blocks)]
    rows = np.concatenate(parts, axis=-1)
    return rows.reshape(*codes.shape[:-1], -1)


def _as_bytes(scales: mx.array, repeats: int) -> Bytes:
    """Scales in float16, one for every block: shape (..., blocks, 2)."""
    halves = as_float32(scales).astype("<f2")
    return np.repeat(halves, repeats, axis=-1)[..., None].view(np.uint8)


def _halves(blocks: Bytes) -> Bytes:
    """The low four bits: of the first half of a block in the low ones of a byte."""
    low = blocks & 0x0F
    first, second = low[..., : BLOCK // 2], low[..., BLOCK // 2 :]
    both: Bytes = np.bitwise_or(first, np.left_shift(second, 4), dtype=np.uint8)
    return both


def _fifth_bits(blocks: Bytes) -> Bytes:
    """The fifth bit of every code, the first code in the lowest bit."""
    return np.packbits(blocks >> 4, axis=-1, bitorder="little")
