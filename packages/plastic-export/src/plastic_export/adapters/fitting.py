"""Whether an adapter is for a base: every layer is there, in the shape that its factors have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plastic_core.files import FormatError

from plastic_export.adapters.adapter import Adapter
from plastic_export.checkpoint.reader import Checkpoint
from plastic_export.checkpoint.tensors import is_matrix
from plastic_export.source.source import Source


def check_fits(source: Path, adapter: Adapter, base: Checkpoint) -> None:
    """Refuse an adapter of another base.

    Args:
        source: Where the adapter is from.
        adapter: The adapter.
        base: The checkpoint that it is laid over. Its layers may have the paths of its files, or
            those of the model that mlx-lm makes of it.

    Raises:
        FormatError: If the base lacks a layer, or has it in another shape: names both.
    """
    shapes: Mapping[str, tuple[int, ...]] = {
        name: base.shape(name) for name in base.tensors if is_matrix(name, base.tensors)
    }
    if any(f"{path}.weight" not in shapes for path in adapter.layers):
        shapes = {**shapes, **{name: m.shape for name, m in Source.of(base).layers.items()}}
    remedy = f"name the base that it was trained on, not {base.folder}"
    for path, pair in adapter.layers.items():
        shape = shapes.get(f"{path}.weight")
        if shape is None:
            raise FormatError.about(source, f"the base has no layer '{path}'", remedy)
        if tuple(shape) != pair.shape:
            here = tuple(shape)
            reason = f"layer '{path}' is for a matrix of shape {pair.shape}, the base has {here}"
            raise FormatError.about(source, reason, remedy)
