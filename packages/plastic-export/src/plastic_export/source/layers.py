"""The layers of a checkpoint whose weights a plan may choose bits for, and where these lie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plastic_export.checkpoint.tensors import ROUTERS, Kind

Form = Literal["copied", "stacked", "computed"]
"""How a weight comes from the tensors of the files; see `Layer`."""

_BLOCK = re.compile(r".*?\.\d+\.")  # "model.layers.3."


@dataclass(frozen=True)
class Layer:
    """A layer of mlx-lm's model, and the tensors of the files that its weight comes from.

    Attributes:
        name: The name of its weight in mlx-lm's model.
        kind: ``"experts"``: a stack of matrices, one per expert.
        experts: How many are stacked; 0 for a single matrix.
        shape: ``(out, in)`` of the dense weight, ``(tokens, width)`` of an embedding.
        dtype: Storage type: its own, or that of its scales where it is packed and they are floats.
        source_bytes: Bytes of it as it is, scales and offsets counted.
        tensors: The tensors that its weight comes from.
        form: ``"copied"``: the one tensor is the weight; ``"stacked"``: the tensors are those of
            the experts; ``"computed"``: mlx-lm computes it from them while it loads.
        is_router: Whether it scores experts: see `is_router`.

    Examples:
        >>> from plastic_export.source import Source
        >>> with open_checkpoint("SRC") as checkpoint:
        ...     layer = Source.of(checkpoint).layers["lm_head.weight"]
        >>> layer.form, layer.shape, layer.source_bytes
        ('copied', (80, 64), 10240)
    """

    name: str
    kind: Kind
    experts: int
    shape: tuple[int, int]
    dtype: str
    source_bytes: int
    tensors: tuple[str, ...]
    form: Form = "copied"
    is_router: bool = False


def is_router(path: str, outputs: int, kinds: Sequence[tuple[str, Kind, int]]) -> bool:
    """Tell whether a linear layer scores the experts of its block rather than feeding them.

    It does if its last part says so, or if it has one output, or as many as a stack in the same
    numbered block has experts, and is no part of the attention.

    Args:
        path: The path of the layer.
        outputs: How many it has.
        kinds: The kinds of all layers of the model.
    """
    block = _BLOCK.match(path)
    if path.rpartition(".")[2] in ROUTERS:
        return True
    if block is None or "att" in path[block.end() :]:
        return False
    counts = {experts for other, _, experts in kinds if experts and other.startswith(block[0])}
    return bool(counts) and outputs in counts | {1}
