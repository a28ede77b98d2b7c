"""What the error of each input or output counts, once those rounded after it make up for it."""

from __future__ import annotations

import numpy as np

from plastic_core.linalg import Float64
from plastic_core.loss.damping import damped_cholesky, damped_gram
from plastic_core.loss.feedback import power_order
from plastic_core.loss.gram_root import GramRoot


def pivots_of(root: GramRoot, group_size: int = 1, *, least_damping: float = 0.0) -> Float64 | None:
    r"""Return the diagonal of :math:`\Delta` in ``G = (I + F) Delta (I + F)^T``.

    That is the factorisation of `Feedback`, in the order in which `error_feedback` rounds, without
    the triangular factor F. An entry that later ones make up for well counts little.

    Args:
        root: The Gram G.
        group_size: Neighbouring entries that share a scale; 1 where there are no groups.
        least_damping: What the damping is raised to where it is less.

    Returns:
        Shape ``(n,)``, float64, positive, in the order of the Gram; None for the identity.

    Raises:
        ValueError: If the Gram is not positive definite after the damping.

    Note:
        ``n b^2 / 3`` operations in float64, b the side of a block, and three matrices of its shape.
    """
    if root.gram is None:
        return None
    G = damped_gram(root.gram, max(root.damping, least_damping), root.shrinkage)
    if G.ndim == 2:
        return _of_block(G, group_size)
    if G.shape[1] == 1:
        return G.reshape(-1)
    return np.concatenate([_of_block(block, group_size) for block in G])


def _of_block(G: Float64, group_size: int) -> Float64:
    backwards = power_order(np.diagonal(G), group_size)[::-1]
    found = np.empty(len(G))
    found[backwards] = np.diagonal(damped_cholesky(G[np.ix_(backwards, backwards)])) ** 2
    return found
