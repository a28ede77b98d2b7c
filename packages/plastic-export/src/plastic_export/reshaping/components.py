"""The update of a matrix as its singular components, found without forming the matrix."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from plastic_core.factors import balance, factor_norm
from plastic_core.linalg import Float32, as_matrix

from plastic_export.adapters.adapter import LoraPair


class Components(NamedTuple):
    """The thin SVD ``U diag(S) Vh`` of an update, its scale included.

    Attributes:
        U: Shape ``(out, k)``, orthonormal columns; ``k = min(r, out, in)``.
        S: Shape ``(k,)``, not negative and not increasing.
        Vh: Shape ``(k, in)``, orthonormal rows.
        dtype: The type in which its factors are stored.
    """

    U: Float32
    S: Float32
    Vh: Float32
    dtype: mx.Dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(out, in)`` of the matrix."""
        return self.U.shape[0], self.Vh.shape[1]

    def leading(self, rank: int) -> LoraPair:
        """Return the best update of that rank, half of every ``S`` in each factor, scale 1."""
        root = np.sqrt(self.S[:rank])
        A, B = mx.array(root[:, None] * self.Vh[:rank]), mx.array(self.U[:, :rank] * root)
        return LoraPair(A.astype(self.dtype), B.astype(self.dtype))


def components(path: str, pair: LoraPair) -> Components:
    """Return the components of an update: a QR of both factors, the SVD of the core between them.

    Costs ``O((out + in + r) r^2)``.

    Raises:
        ValueError: If a factor is not finite; names the layer.
    """
    B, A = as_matrix(pair.B, f"{path}, B"), as_matrix(pair.A, f"{path}, A")
    weights = np.full(pair.rank, pair.scale, np.float32)
    wider = mx.result_type(pair.A, pair.B)
    return Components(*balance(B, weights, A), wider)


def distance(one: LoraPair, other: LoraPair) -> float:
    """Return the Frobenius norm of the difference of two updates, in float64, none formed."""
    left = np.hstack([as_matrix(one.B), as_matrix(other.B)])
    right = np.vstack([as_matrix(one.A), as_matrix(other.A)])
    weights = [one.scale] * one.rank + [-other.scale] * other.rank
    return factor_norm(left, np.array(weights, np.float32), right)
