"""Models stored in float16 whose activations exceed it, which float32 on a CPU would hide."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from plastic_runtime.measure import linear_layers, using_numpy

from plastic_export.checkpoint.warning import warn_about
from plastic_export.model.load import load_model

_REASON = (
    "stored in float16, and activations exceed its 65504: predictions are not finite where it is "
    "run as it is stored, in stock mlx-lm too; what is measured here is its computation in float32"
)
_REMEDY = "`mlx_lm.convert --dtype bfloat16` makes a copy that runs"


def overflows(folder: Path, tokens: mx.array) -> bool:
    """Tell whether a model stored in float16 needs a wider type, and warn of it.

    Cost: one window in the stored type, products in NumPy on a CPU; nothing for other types.

    Args:
        folder: The checkpoint.
        tokens: Windows, shape (windows, tokens); the first is run.

    Returns:
        Whether its logits are not finite in float16 and are in float32.
    """
    model = load_model(folder)
    parameters = dict(tree_flatten(model.parameters()))  # type: ignore[no-untyped-call]
    is_narrow = any(array.dtype == mx.float16 for array in parameters.values())
    if not is_narrow or _is_finite(model, tokens):
        return False
    model.set_dtype(mx.float32)
    exceeds = _is_finite(model, tokens)
    if exceeds:
        warn_about(folder, _REASON, _REMEDY)
    return exceeds


def _is_finite(model: nn.Module, tokens: mx.array) -> bool:
    linears, _ = linear_layers(model, None)
    with using_numpy(linears), np.errstate(invalid="ignore", over="ignore"):
        return bool(mx.isfinite(model(tokens[:1])).all().item())
