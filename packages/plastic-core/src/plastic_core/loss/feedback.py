"""A Gram as rounding takes it: in the order of power, in triangular factors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plastic_core.factors.quantize import GROUP_SIZES
from plastic_core.linalg import Float32, Float64
from plastic_core.loss.damping import damped_cholesky, damping_power


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
    """Factor a positive definite Gram as it stands, in its memory.

    ``places`` are its own rows by default.
    """
    places = np.arange(len(G)) if places is None else places
    gram = G.astype(np.float32)
    upper = damped_cholesky(G[::-1, ::-1])[::-1, ::-1]  # (I + F) Delta^(1/2)
    roots = np.diagonal(upper).copy()
    upper /= roots
    F = upper.astype(np.float32, order="C")
    np.fill_diagonal(F, 0)
    return Feedback(gram, F, (roots**2).astype(np.float32), places)


def feedback_by_power(
    gram: NDArray[Any], damping: float, *, grouped: bool
) -> tuple[Feedback, ...] | None:
    """Damp and factor a Gram in the order in which its inputs or outputs are rounded.

    They come in descending order of their power (a heuristic, GPTQ's ``act_order``), with a mean
    eigenvalue of one. Inputs that may share a scale stay neighbours: groups of 128 come in this
    order, in each of these its groups of 64, in these those of 32, in these the inputs. So one
    factorisation serves every group size.

    Args:
        gram: Shape ``(n, n)``, or its blocks ``(n / b, b, b)``, each of whole groups or of one
            entry.
        damping: What is added to every eigenvalue, as a fraction of their mean.
        grouped: Whether neighbours may share a scale.

    Returns:
        One for each block; None for a diagonal without groups, in which no entry minds another.
    """
    power = damping_power(gram, damping)
    if gram.ndim == 2:
        return (_ordered(gram, 0, power, grouped),)
    if gram.shape[1] == 1:
        if not grouped:
            return None
        size = _shared(len(gram))[0]
        gram = gram.reshape(-1, size, 1) * np.eye(size)
    side = gram.shape[1]
    return tuple(_ordered(block, i * side, power, grouped) for i, block in enumerate(gram))


def _ordered(gram: NDArray[Any], start: int, damping: float, grouped: bool) -> Feedback:
    """Return the block of a Gram that begins at the entry ``start``, ``damping`` added to it."""
    power = np.diagonal(gram).astype(np.float64) + damping
    order = power_order(power, grouped=grouped)
    G = gram[np.ix_(order, order)].astype(np.float64, copy=False)
    np.fill_diagonal(G, power[order])
    G *= len(G) / power.sum()
    return feedback_of(G, start + order)


def power_order(power: Float64, *, grouped: bool) -> NDArray[np.intp]:
    """Return the entries in descending order of their power, whole groups of each size together."""
    places = np.arange(len(power))[None]  # (parts, size)
    for size in (*_shared(len(power)), 1) if grouped else (1,):
        parts = places.reshape(len(places), -1, size)
        ranks = np.argsort(-power[parts].sum(axis=2), axis=1, kind="stable")
        places = np.take_along_axis(parts, ranks[:, :, None], axis=1).reshape(-1, size)
    return places.ravel()


def _shared(n: int) -> list[int]:
    """Return the group sizes that divide n, the largest first."""
    return [size for size in sorted(GROUP_SIZES, reverse=True) if n % size == 0]
