"""The rank of a Jacobian, from random vector-Jacobian products."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import linalg

TOLERANCE = 1e-3
"""Singular values of a Jacobian above this fraction of the largest count as rank (heuristic)."""


class JacobianRank(NamedTuple):
    """Rank of a Jacobian as random probes see it.

    Attributes:
        rank: Number of singular values above ``1e-3`` of the largest; a lower bound where it equals
            ``probes``, unless ``probes`` is the output's size.
        stable_rank: ``||.||_F^2 / ||.||_2^2`` of the probed matrix; 0.0 for a zero one. Exact
            where ``probes`` is the output's size, else an estimate that never exceeds ``probes``.
        singular_values: Those of the probed matrix, shape ``(min(probes, inputs),)``,
            non-increasing.
        probes: Number of vector-Jacobian products taken.

    Examples:
        >>> found = jacobian_rank(lambda x: 2 * x, mx.ones(3), key=mx.random.key(0))
        >>> found.rank, found.probes, round(found.stable_rank, 3)
        (3, 3, 3.0)
    """

    rank: int
    stable_rank: float
    singular_values: NDArray[np.float64]
    probes: int


def jacobian_rank(
    f: Callable[[mx.array], mx.array],
    x: mx.array,
    *,
    key: mx.array,
    probes: int = 32,
) -> JacobianRank:
    r"""Return the numerical rank of the Jacobian J of ``f`` at ``x``.

    With a random :math:`Q` of ``probes`` orthonormal columns the rows of :math:`Q^T J` are
    vector-Jacobian products, and :math:`\mathrm{rank}(Q^T J) = \min(\mathrm{probes},
    \mathrm{rank} J)` almost surely: the random sampling of a range (Halko, Martinsson and Tropp,
    SIAM Review 53(2), 2011, algorithm 4.1), here of that of :math:`J^T`.

    Args:
        f: Differentiable function of one array.
        x: Where; any shape, floating dtype. Inputs and outputs are counted entry by entry.
        key: A key of ``mx.random.key``, which decides the probes.
        probes: How many, at least 1; capped at the number of outputs.

    Returns:
        The rank, the stable rank and the singular values they come from.

    Raises:
        ValueError: If ``probes`` is below 1 or the Jacobian is not finite.

    Note:
        One forward pass and ``probes`` backward passes.

    Examples:
        >>> W = mx.array([[1.0, 2.0], [2.0, 4.0]])
        >>> jacobian_rank(lambda x: W @ x, mx.ones(2), key=mx.random.key(0)).rank
        1
    """
    if probes < 1:
        raise ValueError(f"`probes` must be at least 1, got {probes}.")
    y = f(x)
    probes = min(probes, y.size)
    Q, _ = linalg.qr(mx.random.normal((y.size, probes), key=key))
    rows = [_pullback(f, x, mx.array(q).reshape(y.shape).astype(y.dtype)) for q in Q.T]
    S = linalg.thin_singular_values(np.stack(rows))
    largest = float(S[0]) if S.size else 0.0
    if largest == 0.0:
        return JacobianRank(0, 0.0, S, probes)
    scaled = S.astype(np.float64) / largest
    return JacobianRank(int((scaled > TOLERANCE).sum()), float((scaled**2).sum()), S, probes)


def _pullback(
    f: Callable[[mx.array], mx.array], x: mx.array, cotangent: mx.array
) -> NDArray[np.float32]:
    """Return one row of the probed Jacobian."""
    _, (row,) = mx.vjp(f, [x], [cotangent])
    flat: NDArray[np.float32] = linalg.to_numpy(row.astype(mx.float32)).reshape(-1)
    return flat
