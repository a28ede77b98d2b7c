"""The new directions of a growing layer, orthonormal to those that it has."""

import mlx.core as mx
import numpy as np

from plastic_core import linalg
from plastic_core.factors.operators import Dense
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


def descent_directions(U: Float32, Vh: Float32, k: int, G: Float32) -> tuple[Float32, Float32]:
    r"""Return the ``k`` directions along which the loss falls fastest.

    With :math:`G = dL/dW` and :math:`P, Q` the projectors onto the complements of the present
    column and row spaces, let :math:`P G Q = \sum_i \sigma_i p_i q_i^T`. Of all steps of rank ``k``
    and unit spectral norm, :math:`-\sum_{i \le k} p_i q_i^T` lowers :math:`\langle P G Q, D\rangle`
    most (von Neumann's trace inequality). The minus goes to the left vectors, so that
    :math:`dL/dS_i = -\sigma_i \le 0` where ``S`` enters as zero.

    Args:
        U: Present left directions, shape ``(out, r)``.
        Vh: Present right directions, shape ``(r, in)``.
        k: How many to add, ``r + k <= min(out, in)``.
        G: Gradient of the loss with respect to the dense weight, shape ``(out, in)``.

    Returns:
        ``(out, k)`` with orthonormal columns and ``(k, in)`` with orthonormal rows, the steepest
        first, orthogonal to the present ones.
    """
    G, _ = linalg.scaled(G)  # whose size does not matter, and must not overflow
    beyond = _project_out(_project_out(G, U).T, Vh.T).T
    P, Qh = leading_directions(beyond, k)
    return orthonormal_beyond(U, -P), orthonormal_beyond(Vh.T, Qh.T).T


def leading_directions(A: Float32, k: int) -> tuple[Float32, Float32]:
    """Return the ``k`` leading left and right singular vectors of ``A``, nearly, always the same.

    Returns:
        ``(m, k)`` with orthonormal columns and ``(k, n)`` with orthonormal rows.
    """
    triplets = leading_triplets(Dense(A), linalg.frobenius_norm(A), k, key=0)
    return triplets.U, triplets.Vh


def _project_out(A: Float32, directions: Float32) -> Float32:
    """Remove from the columns of ``A`` the span of ``directions``: twice, against cancellation."""
    Q = _basis(directions)
    once = A - Q @ (Q.T @ A)
    return once - Q @ (Q.T @ once)


def _basis(A: Float32) -> Float32:
    """Return orthonormal columns that span those of ``A``."""
    return linalg.qr(A)[0]
