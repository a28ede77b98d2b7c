"""Leading singular triplets from growing Krylov spaces: so many, or enough for an error."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from plastic_core.bidiagonal import Bidiagonalisation
from plastic_core.certificate import measured_error
from plastic_core.cost import block_size, randomised_cost
from plastic_core.linalg import Float32, Float64
from plastic_core.operators import Operator, Residual

GAIN = 4e-3  # of the energy that is left: what a last extension may still have gained
START = 1.5  # of the rank: size of the space at the first look at its spectrum
STEP = 0.25  # of the rank: size of the extensions between two looks
GROWTH = 0.2  # of the space, where the rank is not known
LOOK = 0.125  # of min(m, n): size of the space from which on the rank can be foreseen
SETTLED = 0.98  # of the last rank: the next one is no better
TRUSTED = 0.03  # relative error above which float32 energies differ by enough to be subtracted
EPS = float(np.finfo(np.float32).eps)


class Triplets(NamedTuple):
    """Nearly the leading singular triplets, float32, and the Frobenius norm of what they miss.

    Attributes:
        U: Shape ``(m, r)``, orthonormal columns.
        S: Shape ``(r,)``, non-negative and non-increasing.
        Vh: Shape ``(r, n)``, orthonormal rows.
        error: Estimate of ``||A - U diag(S) Vh||_F``; exact to 1e-3 above `TRUSTED`.
    """

    U: Float32
    S: Float32
    Vh: Float32
    error: float

    def errors(self) -> Float64:
        """What the r leading triplets miss, for r = 0, 1, ..., all."""
        return np.sqrt(self.error**2 + tails(self.S))

    def leading(self, rank: int) -> Triplets:
        """The ``rank`` leading triplets."""
        return Triplets(self.U[:, :rank], self.S[:rank], self.Vh[:rank], float(self.errors()[rank]))


def leading_triplets(A: Operator, norm: float, rank: int, key: int | mx.array) -> Triplets:
    """The ``rank`` leading triplets: the space grows until growing hardly helps.

    Stops at the first extension by a quarter of the rank that lowers the squared error by less
    than 0.4 percent. A heuristic: the error was then within 0.1 percent of the least possible in
    the Frobenius norm, 1.3 percent in the spectral norm, on every spectrum of
    ``tools/bench/factorize.py``.

    Args:
        A: Operator of shape ``(m, n)``.
        norm: Its Frobenius norm.
        rank: From 1 to ``min(m, n)``.
        key: Seed or key.
    """
    space = Bidiagonalisation(A, norm, block_size(rank), key)
    space.grow_to(round(START * rank))
    s = space.spectrum()
    while space.size < space.limit:
        captured = float(np.sum(s[:rank] ** 2))
        space.grow_to(space.size + max(1, round(STEP * rank)))
        s = space.spectrum()
        gain = float(np.sum(s[:rank] ** 2)) - captured
        left = max(norm**2 - captured - gain, float(np.sum(s[rank:] ** 2)))
        if gain <= max(GAIN * left, (EPS * norm) ** 2):
            break
    error = math.sqrt(max(0.0, norm**2 - float(np.sum(s[:rank] ** 2))))
    return Triplets(*space.factors(rank), error)


def triplets_within(
    A: Operator, norm: float, tolerance: float, budget: float, key: int | mx.array
) -> Triplets | None:
    """The fewest leading triplets that miss at most ``tolerance * norm``.

    The space grows by a fifth until the rank that it needs is settled to 2 percent.

    Args:
        A: Operator of shape ``(m, n)``.
        norm: Its Frobenius norm.
        tolerance: Relative Frobenius error.
        budget: Predicted cost at which to give up (`cost`).
        key: Seed or key.

    Returns:
        The triplets, and 2 percent more of them for rounding; None once so many are needed that
        the predicted cost exceeds ``budget``.
    """
    target, last = (tolerance * norm) ** 2, math.inf
    space = Bidiagonalisation(A, norm, block_size(min(A.shape) // 16), key)
    while True:
        space.grow_to(space.size + max(space.block, round(GROWTH * space.size)))
        s = space.spectrum()
        known = space.size >= LOOK * space.limit
        if known and randomised_cost(A.shape, _least_rank(s, norm**2 - target)) > budget:
            return None
        errors = _squared_errors(space, s, norm)
        rank = int(np.argmax(errors <= target)) if errors[-1] <= target else space.limit
        settled = SETTLED * last <= rank < space.limit
        if settled or space.size == space.limit:
            break
        last = rank
    count = min(space.size, rank + 1 + rank // 50)
    return Triplets(*space.factors(count), math.sqrt(errors[count]))


def _squared_errors(space: Bidiagonalisation, s: Float64, norm: float) -> Float64:
    """``||A - A_r||_F^2`` for the r leading triplets of the space, r = 0, 1, ..., size."""
    missed = norm**2 - float(np.sum(s**2))
    if missed < (TRUSTED * norm) ** 2:
        left, right = space.product()
        missed = measured_error(Residual(space.A, left, right), norm)[0] ** 2
    return missed + tails(s)


def tails(s: Float64 | Float32) -> Float64:
    """``sum_{i >= r} s_i^2`` for r = 0, 1, ..., len(s), in float64."""
    return np.append(np.cumsum(s[::-1].astype(np.float64) ** 2)[::-1], 0.0)


def _least_rank(s: Float64, wanted: float) -> int:
    """How many singular values must at least add up to the energy ``wanted``.

    The leading half of the spectrum of the space is taken for converged; none of the values behind
    it exceeds the last of these.
    """
    converged = max(1, len(s) // 2)
    missing = wanted - float(np.sum(s[:converged] ** 2))
    if missing <= 0.0 or s[converged - 1] == 0.0:
        return 1
    return converged + math.ceil(missing / float(s[converged - 1]) ** 2)
