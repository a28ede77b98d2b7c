"""The common base of the formats by rank: the best approximation, the rest asleep."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import Certificate, output_basis
from plastic_core.files import noting
from plastic_core.linalg import blocks, frobenius_norm
from plastic_runtime import LossGrams

from plastic_export.folder.shards import as_float32, as_stored
from plastic_export.format.errors import Errors
from plastic_export.format.parts import Pieces
from plastic_export.format.protocol import Encoded, Format
from plastic_export.plan.offers import Candidate, Offer


class RankFormat(Format):
    """A format of ``W = U (U^T W)`` with U orthonormal: r components awake, the rest asleep."""

    parks = True

    def encode(
        self, weight: NDArray[np.float32], m: Candidate, offer: Offer, grams: LossGrams | None
    ) -> Encoded:
        """Compute all components, cast to the storage type, with the true errors.

        Cost: one eigendecomposition and two products; about three times the matrix in memory.
        """
        with noting(f"while factoring {m.name!r}"):
            basis = output_basis(weight, gram=None if grams is None else grams.input.matrix)
            u, v = as_stored(basis.U, m.dtype), stored_product(basis.U.T, weight, m.dtype)
            del basis  # one matrix of its size is worth the line
            U, V, r = as_float32(u), as_float32(v), offer.rank
            dense, certificate = self.awake(weight, U[:, :r], V[:r], m.dtype)
        asleep = U[:, r:], V[r:]
        restored = _restored_error(weight, U[:, :r], V[:r], asleep, dense, m.dtype)
        pieces = Pieces(asleep_u=u[:, r:].T, asleep_v=v[r:])
        if dense is None:
            pieces = pieces._replace(v=v[:r], u=u[:, :r].T)
        else:
            pieces = pieces._replace(backbone=dense)
        return Encoded(pieces, Errors.of(weight, certificate, restored))

    def awake(
        self,
        weight: NDArray[np.float32],
        U: NDArray[np.float32],
        V: NDArray[np.float32],
        dtype: str,
    ) -> tuple[mx.array | None, Certificate]:
        """The product ``U V`` as it is stored, None where the factors are; and its errors."""
        raise NotImplementedError


def stored_product(A: NDArray[np.float32], B: NDArray[np.float32], dtype: str) -> mx.array:
    """Return ``A B`` in a storage type; in float32 only one block of rows exists at a time."""
    parts = [as_stored(A[rows] @ B, dtype) for rows in blocks(A.shape[0], B.shape[1])]
    product = mx.concatenate(parts)
    mx.eval(product)
    return product


def _restored_error(
    weight: NDArray[np.float32],
    U: NDArray[np.float32],
    V: NDArray[np.float32],
    asleep: tuple[NDArray[np.float32], NDArray[np.float32]],
    dense: mx.array | None,
    dtype: str,
) -> float:
    """Relative Frobenius error of all components together, after the cast, by blocks of rows."""
    total, (asleep_U, asleep_V) = 0.0, asleep
    for rows in blocks(*weight.shape):
        awake = U[rows] @ V if dense is None else as_float32(dense[rows])
        restored = as_stored(awake + asleep_U[rows] @ asleep_V, dtype)
        total += frobenius_norm(weight[rows] - as_float32(restored)) ** 2
    return math.sqrt(total) / frobenius_norm(weight) if total else 0.0
