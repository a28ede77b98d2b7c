"""The new directions of a growing layer, orthonormal to those that it has."""

from typing import cast

import mlx.core as mx
import numpy as np

from plastic_core import linalg
from plastic_core.factors.operators import LowRank
from plastic_core.factors.randomized import leading_triplets
from plastic_core.linalg import Float32


def orthonormal_beyond(present: Float32, candidates: Float32) -> Float32:
    """Return orthonormal columns that extend ``present`` along ``candidates``.

    Householder QR of ``[present, candidates]``: its trailing columns are orthogonal to the span
    of ``present`` to machine precision whatever the candidates are, even when those lie in that
    span, where projecting them out would leave rounding noise.

    Args:
        present: Shape ``(n, r)``; any columns.
        candidates: Shape ``(n, k)`` with ``r + k <= n``. Candidates that are orthonormal and
            orthogonal to ``present`` already come back as they are, up to rounding.

    Returns:
        Float32 matrix of shape ``(n, k)`` with orthonormal columns.
    """
    r = present.shape[1]
    Q, R = linalg.qr(np.concatenate([present, candidates], axis=1))
    signs = np.where(np.diagonal(R)[r:] < 0, np.float32(-1), np.float32(1))
    return Q[:, r:] * signs


def random_directions(U: Float32, Vh: Float32, k: int, key: mx.array) -> tuple[Float32, Float32]:
    """Return ``k`` random directions orthogonal to the columns of ``U`` and the rows of ``Vh``.

    Args:
        U: Present left directions, shape ``(out, r)``.
        Vh: Present right directions, shape ``(r, in)``.
        k: How many to add, ``r + k <= min(out, in)``.
        key: A key of ``mx.random.key``; the same key gives the same directions.

    Returns:
        ``(out, k)`` with orthonormal columns and ``(k, in)`` with orthonormal rows.
    """
    left_key, right_key = mx.random.split(key)
    left = np.array(mx.random.normal((U.shape[0], k), key=left_key))
    right = np.array(mx.random.normal((Vh.shape[1], k), key=right_key))
    return orthonormal_beyond(U, left), orthonormal_beyond(Vh.T, right).T


def descent_directions(
    U: Float32, Vh: Float32, k: int, Y: Float32, X: Float32
) -> tuple[Float32, Float32]:
    r"""Return the ``k`` directions along which the loss falls fastest.

    With the gradient :math:`G = Y^T X` of the weight and the projectors P and Q onto the
    complements of the present column and row spaces, let
    :math:`P G Q = \sum_i \sigma_i p_i q_i^T`. Of all steps of rank ``k`` and unit spectral norm,
    :math:`-\sum_{i \le k} p_i q_i^T` lowers :math:`\langle P G Q, D\rangle` most (von Neumann's
    trace inequality). The minus goes to the left vectors, so that
    :math:`dL/dS_i = -\sigma_i \le 0` where ``S`` enters as zero. As
    :math:`P G Q = (Y P)^T (X Q)`, G is not formed.

    Args:
        U: Present left directions, shape ``(out, r)``.
        Vh: Present right directions, shape ``(r, in)``.
        k: How many to add, ``r + k <= min(out, in)``.
        Y: Gradients at the outputs, shape ``(tokens, out)``.
        X: The inputs, shape ``(tokens, in)``.

    Returns:
        ``(out, k)`` with orthonormal columns and ``(k, in)`` with orthonormal rows, the steepest
        first, orthogonal to the present ones.

    Note:
        ``O(tokens (in + out) k)`` for each of a few rounds.

    Examples:
        >>> nothing = np.zeros((2, 0), np.float32)
        >>> Y, X = np.float32([[0, 2]]), np.float32([[4, 0]])
        >>> left, right = descent_directions(nothing, nothing.T, 1, Y, X)
        >>> ((left @ right).round(3) + 0.0).tolist()
        [[0.0, 0.0], [-1.0, 0.0]]
    """
    if k == 0:
        return U[:, :0], Vh[:0]
    rows, columns = _without(Y, U), _without(X, Vh.T)
    G = LowRank(rows.T, columns)
    triplets = leading_triplets(G, float(np.sqrt(G.squared_norm())), min(k, len(rows)), key=0)
    left, right = _padded(-triplets.U, k), _padded(triplets.Vh.T, k)
    return orthonormal_beyond(U, left), orthonormal_beyond(Vh.T, right).T


def _without(rows: Float32, directions: Float32) -> Float32:
    """Remove from the rows the span of the columns of ``directions``: twice, for precision."""
    Q = linalg.qr(directions)[0]
    once = rows - (rows @ Q) @ Q.T
    return cast(Float32, once - (once @ Q) @ Q.T)


def _padded(columns: Float32, k: int) -> Float32:
    """Return the columns up to ``k``, of zeros where fewer tokens than that were seen."""
    padded = np.zeros((len(columns), k), np.float32)
    padded[:, : columns.shape[1]] = columns
    return padded
