"""Leading singular triplets from growing Krylov spaces: so many, or enough for an error."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from plastic_core.factors.bidiagonal import Bidiagonalisation
from plastic_core.factors.certificate import TOLERANCE, spectral_bound
from plastic_core.factors.operators import Operator, Residual
from plastic_core.factors.work import block_size, randomized_work
from plastic_core.linalg import Float32, Float64

LAST_GAIN = 1e-2
"""What a last extension may still have gained, as a fraction of the energy that is left."""
FIRST_SIZE = 1.5
"""Size of the space at the first look at its spectrum, in ranks."""
EXTENSION_SIZE = 0.25
"""Size of the extensions between two looks, in ranks."""
UNKNOWN_RANK_EXTENSION = 0.2
"""The same where the rank is not known, as a fraction of the space."""
FORESEEING_SIZE = 0.125
"""Size of the space from which on the rank can be foreseen, as a fraction of min(m, n)."""
SETTLED_RANK = 0.98
"""As a fraction of the last rank found: no less, and the next one is no better."""
LEAST_TRUSTED_ERROR = 0.03
"""Relative error above which float32 energies differ by enough to be subtracted."""
MISSED_GAIN = 0.01
"""What larger singular values that are missed may add, as a fraction of the energy left."""
EPS = float(np.finfo(np.float32).eps)
"""Spacing of float32 at 1."""


class Triplets(NamedTuple):
    """Nearly the leading singular triplets, float32, and the Frobenius norm of what they miss.

    Attributes:
        U: Shape ``(m, r)``, orthonormal columns.
        S: Shape ``(r,)``, non-negative and non-increasing.
        Vh: Shape ``(r, n)``, orthonormal rows.
        error: Estimate of ``||A - U diag(S) Vh||_F``; exact to 1e-3 above `LEAST_TRUSTED_ERROR`.
        bound: An upper bound of its spectral norm (`spectral_bound`), where one was needed.
    """

    U: Float32
    S: Float32
    Vh: Float32
    error: float
    bound: float | None = None

    def errors(self) -> Float64:
        """Return the error of the r leading triplets, for r = 0, 1, ..., all."""
        return np.sqrt(self.error**2 + tails(self.S))

    def leading(self, rank: int) -> Triplets:
        """Return the ``rank`` leading triplets."""
        if rank == len(self.S):
            return self
        return Triplets(self.U[:, :rank], self.S[:rank], self.Vh[:rank], float(self.errors()[rank]))

    def residual(self, A: Operator) -> Residual:
        """Return what they miss of ``A``."""
        return Residual(A, self.U, self.S[:, None] * self.Vh)

    def measured(self, A: Operator) -> Triplets:
        """Return the same triplets with their error exact to 1e-3."""
        return self._replace(error=self.residual(A).norm())

    def bounded(self, A: Operator, key: int | mx.array) -> Triplets:
        """Return the same triplets with a bound, unless they miss no more than rounding."""
        E = self.residual(A)
        if self.error < E.roundoff():
            return self
        return self._replace(bound=spectral_bound(E, self.error, key))

    def are_leading(self) -> bool:
        """Tell whether nothing much larger than the last of them can be among what they miss."""
        if self.bound is None:
            return True
        largest = (1 - TOLERANCE) * self.bound
        gain = np.sum(np.maximum(0.0, largest**2 - self.S.astype(np.float64) ** 2))
        return bool(gain <= MISSED_GAIN * self.error**2)


def leading_triplets(A: Operator, norm: float, rank: int, key: int | mx.array) -> Triplets:
    """Return the ``rank`` leading triplets: the space grows until growing hardly helps.

    Stops at the first extension by a quarter of the rank that lowers the squared error by less
    than one percent. A heuristic: the error was then within 0.1 percent of the least possible in
    the Frobenius norm, 5 percent in the spectral norm, on every spectrum of
    ``tools/bench/factorize.py``. Blocks narrower than the number of equal singular values pass by
    some of them, and nothing in the space shows it; so the spectral norm of what is missed is
    estimated, and where it is too large the blocks widen.

    Args:
        A: Operator of shape ``(m, n)``.
        norm: Its Frobenius norm.
        rank: The number of triplets, from 1 to ``min(m, n)``.
        key: Seed or key.
    """
    space = Bidiagonalisation(A, norm, block_size(rank), key)
    space.grow_to(round(FIRST_SIZE * rank))
    while True:
        s = _settled(space, norm, rank)
        error = math.sqrt(max(0.0, norm**2 - float(np.sum(s[:rank] ** 2))))
        found = Triplets(*space.factors(rank), error)
        if space.size == space.limit or (found := found.bounded(A, key)).are_leading():
            return found
        space.widen()


def _settled(space: Bidiagonalisation, norm: float, rank: int) -> Float64:
    """Return the spectrum of the space, grown until that hardly helps."""
    s = space.spectrum()
    while space.size < space.limit:
        captured = float(np.sum(s[:rank] ** 2))
        space.grow_to(space.size + max(1, round(EXTENSION_SIZE * rank)))
        s = space.spectrum()
        gain = float(np.sum(s[:rank] ** 2)) - captured
        left = max(norm**2 - captured - gain, float(np.sum(s[rank:] ** 2)))
        if gain <= max(LAST_GAIN * left, (EPS * norm) ** 2):
            break
    return s


def triplets_within(
    A: Operator, norm: float, tolerance: float, budget: float, key: int | mx.array
) -> Triplets | None:
    """Return the fewest leading triplets that miss at most ``tolerance * norm``.

    The space grows by a fifth until the rank that it needs is settled to 2 percent.

    Args:
        A: Operator of shape ``(m, n)``.
        norm: Its Frobenius norm.
        tolerance: Relative Frobenius error.
        budget: Predicted work at which to give up (`exact_work`).
        key: Seed or key.

    Returns:
        The triplets, and 2 percent more of them for rounding; None once so many are needed that
        the predicted work exceeds ``budget``.
    """
    target, last = (tolerance * norm) ** 2, math.inf
    space = Bidiagonalisation(A, norm, block_size(min(A.shape) // 16), key)
    while True:
        space.grow_to(space.size + max(space.block, round(UNKNOWN_RANK_EXTENSION * space.size)))
        s = space.spectrum()
        known = space.size >= FORESEEING_SIZE * space.limit
        if known and randomized_work(A.shape, _least_rank(s, norm**2 - target)) > budget:
            return None
        errors = _squared_errors(space, s, norm)
        rank = int(np.argmax(errors <= target)) if errors[-1] <= target else space.limit
        settled = SETTLED_RANK * last <= rank < space.limit
        last = rank
        if settled or space.size == space.limit:
            count = min(space.size, rank + 1 + rank // 50)
            found = Triplets(*space.factors(count), math.sqrt(errors[count]))
            if space.size == space.limit or found.bounded(A, key).are_leading():
                return found
            space.widen()
            last = math.inf


def _squared_errors(space: Bidiagonalisation, s: Float64, norm: float) -> Float64:
    """Return ``||A - A_r||_F^2`` for the r leading triplets of the space, r = 0, 1, ..., size."""
    missed = norm**2 - float(np.sum(s**2))
    if missed < (LEAST_TRUSTED_ERROR * norm) ** 2:
        left, right = space.product()
        missed = Residual(space.A, left, right).norm() ** 2
    return missed + tails(s)


def tails(s: Float64 | Float32) -> Float64:
    """Return ``sum_{i >= r} s_i^2`` for r = 0, 1, ..., len(s), in float64."""
    return np.append(np.cumsum(s[::-1].astype(np.float64) ** 2)[::-1], 0.0)


def _least_rank(s: Float64, wanted: float) -> int:
    """Count the singular values that must at least add up to the energy ``wanted``.

    The leading half of the spectrum of the space is taken for converged; none of the values behind
    it exceeds the last of these.
    """
    converged = max(1, len(s) // 2)
    missing = wanted - float(np.sum(s[:converged] ** 2))
    if missing <= 0.0 or s[converged - 1] == 0.0:
        return 1
    return converged + math.ceil(missing / float(s[converged - 1]) ** 2)
