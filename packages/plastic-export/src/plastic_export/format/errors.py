"""The errors of what is stored of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from plastic_core import Certificate
from plastic_core.linalg import frobenius_norm, spectral_norm


class Errors(NamedTuple):
    """The errors of what is stored of a matrix, relative to its norms.

    Attributes:
        norm: ``||W||_F`` of the matrix itself.
        relative: ``||W - W'||_F / ||W||_F`` of what is awake.
        spectral: ``||W - W'||_2 / ||W||_2`` of the same.
        restored: The relative Frobenius error with everything awake.
    """

    norm: float = 0.0
    relative: float = 0.0
    spectral: float = 0.0
    restored: float = 0.0

    @classmethod
    def of(
        cls, W: NDArray[np.float32], certificate: Certificate, restored: float | None = None
    ) -> Errors:
        """Those that a certificate states; where nothing sleeps, there is nothing to restore."""
        relative, spectral = certificate.relative_error, certificate.spectral_error
        restored = relative if restored is None else restored
        return cls(frobenius_norm(W), relative, spectral, restored)

    @staticmethod
    def of_stack(errors: Sequence[Errors]) -> Errors:
        """Return those of a stack as one matrix, but the worst of the spectral ones."""
        if len(errors) == 1:
            return errors[0]
        norms = np.array([e.norm for e in errors])
        total = float(np.linalg.norm(norms)) or 1.0
        relative, restored = (
            float(np.linalg.norm(np.array(values) * norms)) / total
            for values in ([e.relative for e in errors], [e.restored for e in errors])
        )
        return Errors(total, relative, max(e.spectral for e in errors), restored)


def dense_certificate(A: NDArray[np.float32], B: NDArray[np.float32]) -> Certificate:
    """Return the errors of a dense approximation B, relative to the norms of A."""
    difference = A - B
    if not difference.any():
        return Certificate(0.0, 0.0)
    return Certificate(
        frobenius_norm(difference) / frobenius_norm(A), spectral_norm(difference) / spectral_norm(A)
    )
