"""An orthonormal basis that grows by blocks of columns."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from plastic_core.linalg import Float32, Float64, Matrix, eigh, place, squared_norm, to_numpy

LEAST_LENGTH = 1e-2
"""Of the longest direction: what is scaled up from less brings the old directions back."""


class GrowingBasis:
    """Orthonormal vectors of one length, kept where large products run.

    Args:
        length: Entries of a vector.
        limit: Most vectors it can hold; memory is taken as they come.
        rng: Source of the directions that replace dependent ones.
    """

    def __init__(self, length: int, limit: int, rng: np.random.Generator) -> None:
        self.length, self.size, self._rng = length, 0, rng
        self._rows: Matrix = place(np.empty((0, length), np.float32))
        if not isinstance(self._rows, mx.array):  # an untouched page costs nothing
            self._rows = np.empty((limit, length), np.float32)

    @property
    def rows(self) -> Matrix:
        """The basis vectors as rows, shape ``(size, length)``."""
        return self._rows[: self.size]

    def combine(self, P: Float32) -> Float32:
        """Return ``rows.T @ P``, shape ``(length, c)`` for ``P (size, c)``."""
        return to_numpy(self.rows.T @ place(P))

    def extend(self, Y: Float32, floor: float) -> tuple[Float32, Float64, Float64]:
        """Append what the columns of ``Y`` add, and as many vectors as ``Y`` has columns.

        Columns that add nothing above ``floor`` are replaced by random directions.

        Args:
            Y: Shape ``(length, b)``.
            floor: Norm below which a remainder is rounding.

        Returns:
            The new vectors ``Q (length, b)``, and ``C (size, b)``, ``R (b, b)`` such that
            ``Y = old @ C + Q @ R`` up to rounding and ``floor``.
        """
        remainder, C = self._project_out(Y)
        Q, R, steep = _orthonormal(remainder, floor)
        if steep:
            Q, again = self._project_out(Q)
            Q, more, _ = _orthonormal(Q, 0.5)
            C, R = C + again @ R, more @ R
        Q, R = self._completed(Q, R, Y.shape[1])
        self._append(Q)
        return Q, C, R

    def _project_out(self, Y: Float32) -> tuple[Float32, Float64]:
        """Remove the span of the basis from ``Y``: twice where much of it lay there."""
        C = np.zeros((self.size, Y.shape[1]))
        for _ in range(3):
            before = squared_norm(Y)
            inner = to_numpy(self.rows @ place(Y))
            Y = Y - self.combine(inner)
            C += inner
            if squared_norm(Y) >= 0.25 * before:
                break
        return Y, C

    def _completed(self, Q: Float32, R: Float64, width: int) -> tuple[Float32, Float64]:
        """Random directions beside ``Q``, with no share in ``R``, up to ``width`` columns."""
        while (missing := width - Q.shape[1]) > 0:
            fresh = self._rng.standard_normal((self.length, missing), dtype=np.float32)
            for _ in range(2):
                fresh, _ = self._project_out(fresh)
                fresh = fresh - Q @ (Q.T @ fresh)
            found, _, _ = _orthonormal(fresh, 1e-3)
            found, _ = self._project_out(found)
            found, _, _ = _orthonormal(found - Q @ (Q.T @ found), 0.5)
            Q = np.hstack([Q, found])
        return Q, np.vstack([R, np.zeros((Q.shape[1] - len(R), R.shape[1]))])

    def _append(self, Q: Float32) -> None:
        stop = self.size + Q.shape[1]
        if isinstance(self._rows, mx.array):
            self._rows = mx.concatenate([self._rows, mx.array(Q.T)])
        else:
            self._rows[self.size : stop] = Q.T
        self.size = stop


def _orthonormal(Y: Float32, floor: float) -> tuple[Float32, Float64, bool]:
    """Split ``Y = Q @ R``, Q orthonormal, without directions whose share is below ``floor``.

    The eigenvectors of the Gram matrix, in float64, twice (Stathopoulos and Wu, *A block
    orthogonalization procedure with constant synchronization requirements*, SIAM J. Sci. Comput.
    23(6), 2002, algorithm 1, https://doi.org/10.1137/S1064827500370883). The last value tells
    whether Q holds directions that were scaled up much more than others.
    """
    wide = Y.astype(np.float64)
    energies, W = eigh(wide.T @ wide)
    lengths = np.sqrt(np.maximum(energies, 0.0))
    kept = lengths > max(floor, 1e-7 * lengths.max(initial=0.0))
    lengths, W = lengths[kept], W[:, kept]
    wide, R = wide @ (W / lengths), lengths[:, None] * W.T
    steep = bool(len(lengths) and lengths[-1] < LEAST_LENGTH * lengths[0])
    if steep:
        energies, W = eigh(wide.T @ wide)
        lengths = np.sqrt(energies)
        wide, R = wide @ (W / lengths), (lengths[:, None] * W.T) @ R
    return wide.astype(np.float32), R, steep
