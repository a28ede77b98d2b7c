"""The order of rows and the offsets of norms, where llama.cpp has others than mlx-lm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plastic_export.gguf.architectures import Architecture


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Return the rows of queries or keys in the order in which llama.cpp rotates neighbours.

    Args:
        rows: Shape (heads * d, ...), in every head the first halves of all pairs, then the second.
        heads: How many heads.

    Returns:
        The same rows, in every head the halves of a pair side by side.

    Examples:
        >>> interleaved(np.array([[0], [1], [2], [3]]), 1)[:, 0]
        array([0, 2, 1, 3])
    """
    pairs = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


class RowOrder:
    """Rearranges the rows of the tensors of one model.

    Args:
        architecture: The architecture.
        config: The configuration.
    """

    def __init__(self, architecture: Architecture, config: Mapping[str, Any]) -> None:
        heads = config["num_attention_heads"]
        groups = config.get("num_key_value_heads") or heads
        self._heads = {"attn_q": heads, "attn_k": groups} if architecture.interleaved else {}

    def of(self, kind: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the rows of a tensor of this kind, such as ``"attn_q"``, in llama.cpp's order."""
        heads = self._heads.get(kind)
        return rows if heads is None else interleaved(rows, heads)
