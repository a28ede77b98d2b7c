"""The two factors of every layer, put together from the tensors of a file and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
from plastic_core.files import FormatError

from plastic_export.adapters.adapter import LoraPair

LARGEST = float(np.finfo(np.float32).max)
"""Of what a scale may be."""

_AGAIN = "save the adapter again with the tool that made it"
_EMBEDDINGS = ("embed", "wte")


def paired(
    file: Path,
    sides: Mapping[str, Mapping[str, mx.array]],
    scale: Callable[[str, int], float],
) -> dict[str, LoraPair]:
    """Return the update of every layer.

    Args:
        file: The file to blame.
        sides: The factors by the layer's name, under ``"A"`` of shape ``(r, in)`` and under
            ``"B"`` of shape ``(out, r)``.
        scale: The scale of a layer, from its name and its rank.

    Raises:
        FormatError: If a layer lacks a factor, its factors are no matrices of one rank, a number
            is not finite, or there is no layer.
    """
    for one, other in ("AB", "BA"):
        for name in sides[one]:
            if name not in sides[other]:
                raise FormatError.about(file, f"layer '{name}' lacks its factor {other}", _AGAIN)
    if not sides["A"]:
        raise FormatError.about(file, "it holds no pair of factors", "name an adapter of LoRA")
    pairs = {}
    for name, A in sides["A"].items():
        B = sides["B"][name]
        _check(file, name, A, B)
        number = scale(name, A.shape[0]) if A.shape[0] else 1.0
        if not abs(number) <= LARGEST:
            reason = f"layer '{name}': its scale is {number}, no number of float32"
            raise FormatError.about(file, reason, _AGAIN)
        pairs[name] = LoraPair(A, B, number).trimmed()
    return pairs


def refuse_others(file: Path, others: Mapping[str, str]) -> None:
    """Refuse an adapter that holds more than factors; the first such tensor is named.

    Args:
        file: The file.
        others: What each of them is, by its name.
    """
    for name, what in others.items():
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        reason = f"{what}, no factor of a linear layer{more}"
        raise FormatError.about(file, reason, "leave it out and save it again", tensor=name)


def _check(file: Path, name: str, A: mx.array, B: mx.array) -> None:
    for side, array in (("A", A), ("B", B)):
        if not mx.issubdtype(array.dtype, mx.floating):
            reason = f"layer '{name}': its factor {side} is of {array.dtype}, no floating type"
            raise FormatError.about(file, reason, _AGAIN)
        if array.ndim != 2:
            kind = "convolutions and stacks of experts are not read"
            reason = f"layer '{name}': its factor {side} has shape {array.shape}; {kind}"
            raise FormatError.about(file, reason, "train one on linear layers")
        if not mx.isfinite(array).all().item():
            reason = f"layer '{name}': its factor {side} holds NaN or an infinity"
            raise FormatError.about(file, reason, "take an earlier state of its training")
    if A.shape[0] != B.shape[1]:
        ranks = f"ranks {A.shape[0]} and {B.shape[1]}"
        reason = f"layer '{name}': its factors of shapes {A.shape} and {B.shape} have {ranks}"
        raise FormatError.about(file, reason, _AGAIN)
    if any(part in name.rpartition(".")[2] for part in _EMBEDDINGS):
        reason = f"layer '{name}' is an embedding, whose factors are not read"
        raise FormatError.about(file, reason, "train one on linear layers")
