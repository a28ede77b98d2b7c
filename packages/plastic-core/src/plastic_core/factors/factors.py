"""A low-rank matrix as its factors, and how far it is from what it stands for."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Certificate(NamedTuple):
    """The distance of stored factors from the matrix they stand for: see `certify`.

    Attributes:
        relative_error: Frobenius norm of the difference over the Frobenius norm of the matrix.
        spectral_error: An upper bound of the same in the spectral norm.

    Examples:
        >>> import numpy as np
        >>> from plastic_core import certify
        >>> certify(np.diag([4.0, 3.0]), np.array([[4.0], [0.0]]), np.array([[1.0, 0.0]]))
        Certificate(relative_error=0.6, spectral_error=0.7...)
    """

    relative_error: float
    spectral_error: float


class _Triple(NamedTuple):
    U: mx.array
    S: mx.array
    Vh: mx.array


class Factors(_Triple):
    """The factors of a matrix ``A = U @ diag(S) @ Vh``.

    Attributes:
        U: Shape ``(m, r)``.
        S: Shape ``(r,)``.
        Vh: Shape ``(r, n)``.
        certificate: Errors of exactly these numbers; None on factors that nobody has measured,
            such as a cast or a slice of certified ones.
        method: How they were computed, ``"exact"`` or ``"randomized"``; None if unknown.

    Examples:
        >>> factors = Factors(mx.eye(3), mx.array([3.0, 2.0, 1.0]), mx.eye(3))
        >>> factors.leading(1).dense().tolist()
        [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    certificate: Certificate | None = None
    method: str | None = None

    @classmethod
    def certified(
        cls, U: mx.array, S: mx.array, Vh: mx.array, certificate: Certificate, method: str
    ) -> Factors:
        """Return the factors with the errors that were measured of them."""
        factors = cls(U, S, Vh)
        factors.certificate, factors.method = certificate, method
        return factors

    @property
    def rank(self) -> int:
        """The number of components."""
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(m, n)`` of the product."""
        return self.U.shape[0], self.Vh.shape[1]

    def leading(self, rank: int) -> Factors:
        """Return the first ``rank`` components, uncertified."""
        return Factors(self.U[:, :rank], self.S[:rank], self.Vh[:rank])

    def dense(self) -> mx.array:
        """Return ``U @ diag(S) @ Vh`` of shape ``(m, n)``, in the dtype of the factors."""
        return (self.U * self.S) @ self.Vh
