"""Thin QR of a float32 matrix within float32 memory.

``np.linalg.qr`` widens the whole matrix to float64, several times over. Here LAPACK factors one
panel of columns at a time; on the other columns the reflectors act as blocks, in the compact WY
form of Schreiber and Van Loan, *A storage-efficient WY representation for products of Householder
transformations*, SIAM J. Sci. Stat. Comput. 10(1), 1989, https://doi.org/10.1137/0910005.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plastic_core.linalg.arrays import Float32
from plastic_core.linalg.lapack import packed_qr

PANEL = 128
"""Columns that LAPACK factors at a time."""


class BlockReflector(NamedTuple):
    """The orthogonal matrix ``I - Y @ T @ Y.T``, acting on the rows from ``start`` on."""

    start: int
    Y: Float32
    T: Float32

    def apply(self, C: Float32) -> None:
        """Multiply ``C`` from the left, in place."""
        rows = C[self.start :]
        rows -= self.Y @ (self.T @ (self.Y.T @ rows))

    def apply_transposed(self, C: Float32) -> None:
        """Multiply ``C`` from the left by the transpose, in place."""
        rows = C[self.start :]
        rows -= self.Y @ (self.T.T @ (self.Y.T @ rows))


class HouseholderQR(NamedTuple):
    """A factorisation ``A = Q @ T``: ``Q (m, k)`` is a product of ``k = min(m, n)`` reflectors.

    Attributes:
        reflectors: The reflectors of Q, the leftmost first.
        T: Upper triangular, shape ``(k, n)``, float32.
        rows: m.
    """

    reflectors: list[BlockReflector]
    T: Float32
    rows: int

    def times(self, P: Float32) -> Float32:
        """Return ``Q @ P`` of shape ``(m, c)`` for ``P`` of shape ``(k, c)``, float32."""
        product = np.zeros((self.rows, P.shape[1]), dtype=np.float32)
        product[: len(P)] = P
        for start in range(0, P.shape[1], PANEL):
            for reflector in reversed(self.reflectors):
                reflector.apply(product[:, start : start + PANEL])
        return product


def householder_qr(A: Float32) -> HouseholderQR:
    """Factor ``A`` of shape ``(m, n)`` and any rank; ``Q`` is orthonormal even for a zero matrix.

    Left-looking, backward stable in float32; 2 n^2 (m - n / 3) operations for a tall matrix. The
    reflectors hold as many entries as the lower part of ``A``; nothing else of its size is made.
    """
    (m, n), k = A.shape, min(A.shape)
    T, reflectors = np.zeros((k, n), dtype=np.float32), list[BlockReflector]()
    for start in range(0, n, PANEL):
        columns, done = slice(start, start + PANEL), min(start, k)
        panel = A[:, columns].astype(np.float32)
        for reflector in reflectors:
            reflector.apply_transposed(panel)
        T[:done, columns] = panel[:done]
        if start < k:
            packed, tau = packed_qr(panel[start:])
            T[start:, columns] = np.triu(packed)[: k - start]
            Y = np.tril(packed[:, : len(tau)], -1)
            np.fill_diagonal(Y, 1)
            reflectors.append(BlockReflector(start, Y, _wy_factor(Y, tau)))
    return HouseholderQR(reflectors, T, m)


def _wy_factor(Y: Float32, tau: Float32) -> Float32:
    """Return the T of ``H_1 H_2 ... = I - Y T Y^T`` for ``H_j = I - tau_j y_j y_j^T``."""
    T, products = np.diag(tau), Y.T @ Y
    for j in range(1, len(tau)):
        T[:j, j] = -tau[j] * (T[:j, :j] @ products[:j, j])
    return T
