"""The factors of an update in float16: half the bytes, at an error far below that of training."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core.linalg import to_numpy

from plastic_export.adapters.adapter import LoraPair

STORED = mx.float16


def in_half(pair: LoraPair) -> LoraPair:
    r"""Return an update with both factors in float16.

    Every component is balanced first, by a power of two and so exactly: what ``A`` is divided by
    ``B`` is multiplied with, until the largest entries of both are as near as that allows. Then
    an entry is rounded by :math:`2^{-11}` of itself at most, or by :math:`2^{-25}`, half of the
    least step of float16, if that is more.

    Args:
        pair: The update, with finite factors.

    Raises:
        ValueError: If an entry is beyond 65,504, the largest of float16, even so.

    Examples:
        >>> half = in_half(LoraPair(mx.full((1, 2), 2.0**20), mx.full((2, 1), 2.0**-20)))
        >>> half.A.tolist(), half.B.tolist(), half.nbytes
        ([[1.0, 1.0]], [[1.0], [1.0]], 8)
    """
    shift = _shifts(_largest(pair.A, axis=1), _largest(pair.B, axis=0))
    A = np.ldexp(to_numpy(pair.A), -shift[:, None])
    B = np.ldexp(to_numpy(pair.B), shift)
    limit = float(np.finfo(np.float16).max)
    most = float(max(np.abs(A).max(initial=0.0), np.abs(B).max(initial=0.0)))
    if most > limit:
        raise ValueError(f"an entry of {most:.3g} is beyond the {limit:,.0f} of float16")
    return LoraPair(mx.array(A).astype(STORED), mx.array(B).astype(STORED), pair.scale)


def _largest(side: mx.array, axis: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.abs(to_numpy(side)).max(axis=axis, initial=0.0)
    return found


def _shifts(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the power of two that goes from one factor to the other, for every component."""
    both = (left > 0) & (right > 0)
    ratio = np.divide(left, right, out=np.ones_like(left, np.float64), where=both)
    shifts: NDArray[np.int64] = np.rint(np.log2(ratio) / 2).astype(np.int64)
    return shifts
