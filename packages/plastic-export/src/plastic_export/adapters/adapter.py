"""An adapter, whatever file it came from: a product of low rank beside each matrix of a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np
from plastic_core.linalg import to_numpy

Form = Literal["mlx", "peft", "kohya"]
"""How an adapter lies on the disk: as mlx-lm, PEFT or kohya's scripts write it."""


class LoraPair(NamedTuple):
    """The update of one matrix: ``scale * B @ A``, of shape ``(out, in)``.

    Attributes:
        A: Shape ``(r, in)``, of a floating dtype.
        B: Shape ``(out, r)``.
        scale: What the product is multiplied by: in PEFT ``alpha / r``.

    Examples:
        >>> pair = LoraPair(mx.ones((2, 3)), mx.ones((4, 2)), 0.5)
        >>> pair.rank, pair.shape, pair.nbytes
        (2, (4, 3), 56)
    """

    A: mx.array
    B: mx.array
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(out, in)`` of the matrix that it updates."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of both factors."""
        return self.A.nbytes + self.B.nbytes

    def padded(self, rank: int) -> LoraPair:
        """Return the same product with ``rank`` components, those added of zeros."""
        missing = rank - self.rank
        A, B = mx.pad(self.A, [(0, missing), (0, 0)]), mx.pad(self.B, [(0, 0), (0, missing)])
        return LoraPair(A, B, self.scale)

    def trimmed(self) -> LoraPair:
        """Return the same product without the zeros that `padded` adds, bits unchanged."""
        used = mx.any(self.A != 0, axis=1) | mx.any(self.B != 0, axis=0)
        rank = int(np.flatnonzero(to_numpy(used)).max(initial=-1)) + 1
        return LoraPair(self.A[:rank], self.B[:, :rank], self.scale)


@dataclass(frozen=True)
class Adapter:
    """An adapter of low rank.

    Attributes:
        layers: The update of every layer by its path, such as
            ``"model.layers.0.mlp.up_proj"``; in an adapter of kohya's scripts that was read
            without its base, by the name that it has there.
        base: Absolute path or Hub id of the checkpoint that it was made for; None if unknown.
        revision: Commit of that, for a Hub id.
        form: The form that it was read from.

    Examples:
        >>> adapter = Adapter({"layers.0": LoraPair(mx.ones((2, 3)), mx.ones((4, 2)))})
        >>> adapter.ranks, adapter.form
        ({'layers.0': 2}, 'mlx')
    """

    layers: Mapping[str, LoraPair]
    base: str | None = None
    revision: str | None = None
    form: Form = "mlx"

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of every layer, by path."""
        return {path: pair.rank for path, pair in self.layers.items()}

    def awake(self) -> Adapter:
        """Return it without the layers of rank 0.

        Raises:
            ValueError: If every rank is 0.
        """
        layers = {path: pair for path, pair in self.layers.items() if pair.rank}
        if not layers:
            raise ValueError("the adapter must have a component, and the rank of every layer is 0.")
        return replace(self, layers=layers)
