"""A Gram as rounding takes it: in the order of power, in triangular factors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plastic_core.linalg import Float32, Float64
from plastic_core.loss.damping import damped_cholesky


class Feedback(NamedTuple):
    r"""A Gram G of some inputs or outputs, and what its factorisation tells of them.

    .. math::

        G = (I + F) \, \Delta \, (I + F)^T,

    with F strictly upper triangular and :math:`\Delta` diagonal: entry j is to make up for the
    errors of the entries before it in the proportions :math:`F_{\cdot j}`, and its own error then
    counts :math:`\Delta_j`.

    Attributes:
        gram: G, shape ``(n, n)``, float32.
        F: Shape ``(n, n)``, float32.
        pivots: The diagonal of Delta, shape ``(n,)``, float32.
        places: Which inputs or outputs of the whole these are, in this order, shape ``(n,)``.
    """

    gram: Float32
    F: Float32
    pivots: Float32
    places: NDArray[np.intp]

    def weights(self, part: slice) -> Float32:
        """Return what the errors of some neighbours count, their sum being one."""
        pivots = self.pivots[part]
        weights: Float32 = pivots / pivots.sum()
        return weights


def feedback_of(G: Float64, places: NDArray[np.intp] | None = None) -> Feedback:
    """Factor a positive definite Gram as it stands; ``places`` are its own rows by default."""
    upper = damped_cholesky(G[::-1, ::-1])[::-1, ::-1]  # (I + F) Delta^(1/2)
    roots = np.diagonal(upper).copy()
    upper /= roots
    F, pivots = np.triu(upper.astype(np.float32), 1), (roots**2).astype(np.float32)
    return Feedback(
        G.astype(np.float32), F, pivots, np.arange(len(G)) if places is None else places
    )


def feedback_by_power(G: Float64, group_size: int) -> tuple[Feedback, ...] | None:
    """Factor a damped Gram in the order in which its inputs or outputs are rounded.

    The groups come in descending order of the power of their inputs, as do the inputs in a group
    (a heuristic, GPTQ's ``act_order`` kept to MLX's groups), with a mean eigenvalue of one.

    Args:
        G: Shape ``(n, n)``, or its blocks ``(n / b, b, b)``, each of whole groups or of one entry.
        group_size: A divisor of n; 1 where there are no groups.

    Returns:
        One for each block; None for a diagonal without groups, in which no entry minds another.
    """
    if G.ndim == 2:
        return (_ordered(G, 0, group_size),)
    if G.shape[1] == 1:
        if group_size == 1:
            return None
        G = G.reshape(-1, group_size, 1) * np.eye(group_size)
    side = G.shape[1]
    return tuple(_ordered(block, i * side, group_size) for i, block in enumerate(G))


def _ordered(G: Float64, start: int, group_size: int) -> Feedback:
    """Return the block of a Gram that begins at the entry ``start``."""
    order = power_order(np.diagonal(G), group_size)
    ordered: Float64 = G[np.ix_(order, order)]
    ordered *= len(G) / np.trace(G)
    return feedback_of(ordered, start + order)


def power_order(power: Float64, group_size: int) -> NDArray[np.intp]:
    """Return the groups in descending order of their power, and so the entries of each."""
    groups = np.arange(len(power)).reshape(-1, group_size)
    groups = groups[np.argsort(-power[groups].sum(axis=1), kind="stable")]
    inner = np.argsort(-power[groups], axis=1, kind="stable")
    return np.take_along_axis(groups, inner, axis=1).ravel()
