"""The identity of a file of Grams: what it was measured of."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten


def calibration_identity(
    model: nn.Module, batches: Sequence[mx.array], seed: int, layers: Sequence[str], widest: int
) -> dict[str, Any]:
    """Return what the Grams depend on, in JSON's types: parameters with their types and shapes."""
    parameters = model.parameters()  # type: ignore[no-untyped-call]
    named = sorted(dict(tree_flatten(parameters)).items())
    text = (("batch", batch) for batch in batches)
    return {
        "model": _digest(named),
        "seed": seed,
        "layers": list(layers),
        "text": _digest(text),
        "widest": widest,
    }


def check_same(where: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse what was measured of something else.

    Raises:
        ValueError: Naming the first difference.
    """
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"{os.fspath(where)}: the Grams in it must be of the same model, seed, layers, "
                f"text and widest side, but its {name} differs; delete it or name another file."
            )


def _digest(arrays: Iterable[tuple[str, mx.array]]) -> str:
    digest: Any = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.asarray(array.reshape(-1).view(mx.uint8)))
    text: str = digest.hexdigest()
    return text
