"""Block Lanczos bidiagonalisation: the Krylov spaces in which singular vectors appear first."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from plastic_core.factors.growing_basis import GrowingBasis
from plastic_core.factors.operators import Operator
from plastic_core.linalg import Float32, Float64, eigh, thin_svd, to_numpy
from plastic_core.linalg.arrays import generator
from plastic_core.linalg.lapack import eigvalsh

EPS = float(np.finfo(np.float32).eps)
"""Spacing of float32 at 1."""
LEAST_SQUARED = 1e-4
"""Below this fraction of the largest singular value, squares lose what the vectors need."""


class Bidiagonalisation:
    r"""Orthonormal U and V with :math:`A V = U B`, grown by a block of columns at a time.

    From a random block :math:`V_1` the spaces :math:`V_{j+1} \subset A^T U_j + V_1 + ... + V_j`,
    :math:`U_j \subset A V_j + U_1 + ... + U_{j-1}` are built with full re-orthogonalisation. The
    singular values of B never exceed those of A, grow with the space, and approach the largest
    ones first; as :math:`A V = U B`, what the space misses is known:

    .. math::

        \|A - A V V^T\|_F^2 = \|A\|_F^2 - \|B\|_F^2.

    Dependent directions are replaced by random ones, so that repeated singular values, exact low
    rank and zero matrices need no special case. A wide matrix is taken transposed: the random block
    belongs to the shorter side, so that spaces of ``min(m, n)`` dimensions hold all of A.

    Args:
        A: Operator of shape ``(m, n)``.
        norm: Its Frobenius norm.
        block: Columns of a block.
        key: Seed or key of the first block.

    References:
        Golub, Luk and Overton, *A block Lanczos method for computing the singular values and
        corresponding singular vectors of a matrix*, ACM TOMS 7(2), 1981,
        https://doi.org/10.1145/355945.355946; Musco and Musco, *Randomized block Krylov methods
        for stronger and faster approximate singular value decomposition*, NIPS 2015, theorem 1:
        near-optimal whatever the spectrum, https://arxiv.org/abs/1504.05477.
    """

    def __init__(self, A: Operator, norm: float, block: int, key: int | mx.array) -> None:
        rng = generator(key)
        self.A, self.block, self.floor, self.limit = A, block, EPS * norm, min(A.shape)
        self.wide = A.shape[0] < A.shape[1]
        m, n = A.shape[::-1] if self.wide else A.shape
        self.U, self.V = GrowingBasis(m, self.limit, rng), GrowingBasis(n, self.limit, rng)
        self.B: Float64 = np.zeros((0, 0))
        self._next = rng.standard_normal((n, min(block, self.limit)), dtype=np.float32)
        self._last, self._last_P = slice(0, 0), np.zeros((m, 0), np.float32)

    @property
    def size(self) -> int:
        """Dimension of the spaces."""
        return self.U.size

    def extend(self) -> None:
        """Grow both spaces by one block, or by what is left up to ``min(m, n)``."""
        old = self.size
        Q, _, L = self.V.extend(self._next, self.floor)
        share = L.T[: self._last_P.shape[1]]
        Y = self._times(Q) - self._last_P @ share.astype(np.float32)
        P, C, R = self.U.extend(Y, self.floor)
        B = np.zeros((self.size, self.size))
        B[:old, :old], B[:old, old:], B[old:, old:] = self.B, C, R
        B[self._last, old:] += share
        self.B = B
        width = min(self.block, self.limit - self.size)
        self._last, self._last_P = slice(old, old + width), P[:, :width]
        Z = self._transposed_times(self._last_P)
        self._next = Z - Q @ R.T[:, :width].astype(np.float32)

    def grow_to(self, size: int) -> None:
        """Extend until the spaces have at least ``size`` dimensions, or all there are."""
        while self.size < min(size, self.limit):
            self.extend()

    def widen(self) -> None:
        """Double the block: what is new in it starts from random directions.

        Blocks of b columns lead to b of the directions that share a singular value. Extends twice:
        random directions show little before they are multiplied by A.
        """
        self.block *= 2
        new = min(self.block, self.limit - self.size) - self._next.shape[1]
        self._next = np.pad(self._next, ((0, 0), (0, new)))
        self.grow_to(self.size + 2 * self.block)

    def product(self) -> tuple[Float32, Float32]:
        """Return the factors ``(m, size)`` and ``(size, n)`` of what the spaces hold of A."""
        UB, V = self.U.combine(self.B.astype(np.float32)), to_numpy(self.V.rows)
        return (V.T, UB.T) if self.wide else (UB, V)

    def spectrum(self) -> Float64:
        """Return the singular values of B, non-increasing: lower bounds of those of A."""
        return np.sqrt(np.maximum(eigvalsh(self.B @ self.B.T), 0.0))

    def factors(self, rank: int) -> tuple[Float32, Float32, Float32]:
        """Return the ``rank`` leading singular triplets of what the spaces hold of A, float32."""
        P, S, W = _leading_triplets(self.B, rank)
        left = self.U.combine(P.astype(np.float32))
        right = self.V.combine(W.astype(np.float32))
        return (
            (right if self.wide else left),
            S.astype(np.float32),
            (left if self.wide else right).T,
        )

    def _times(self, X: Float32) -> Float32:
        return self.A.transposed_times(X) if self.wide else self.A.times(X)

    def _transposed_times(self, Y: Float32) -> Float32:
        return self.A.times(Y) if self.wide else self.A.transposed_times(Y)


def _leading_triplets(B: Float64, rank: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return ``P (d, r)``, ``S (r,)``, ``W (d, r)`` with ``B @ W = P @ diag(S)``."""
    energies, P = eigh(B @ B.T)
    S, P = np.sqrt(np.maximum(energies[:rank], 0.0)), P[:, :rank]
    if S.size and S[-1] > LEAST_SQUARED * S[0]:
        return P, S, (B.T @ P) / S
    P32, S32, Wh = thin_svd(B)
    return P32[:, :rank], S32[:rank], Wh[:rank].T
