"""The square roots of a damped Gram matrix, each computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from plastic_core import linalg
from plastic_core.linalg import Float64, Matrix
from plastic_core.loss.damping import check_gram, damped_cholesky, damped_gram, gram_side
from plastic_core.loss.feedback import Feedback, feedback_by_power


class GramRoot:
    """A Gram, damped so that it can be factored; its factors are made when needed, and shared.

    For prices, a matrix L with ``L @ L.T`` equal to the damped Gram. L is the Cholesky factor.
    Every other square root is ``L @ Q`` with an orthogonal Q, which changes no singular value of
    ``L.T @ A`` or ``A @ L``; and a Cholesky factor costs a sixth of an eigendecomposition. For
    rounding, another triangular root (`feedback`).

    ``GramRoot(None)`` is the identity of any size, of which nothing is stored or computed.

    Attributes:
        gram: The Gram without its damping: the caller's memory, which must not change. None for
            the identity.
        damping: What is added to every eigenvalue, as a fraction of their mean.
        shrinkage: What is taken from the entries off the diagonal first, as a fraction of them.

    Examples:
        >>> import numpy as np
        >>> root = GramRoot.of(np.diag([3.0, 15.0]), damping=1 / 9)
        >>> root.times_root(np.ones((1, 2))).tolist()
        [[2.0, 4.0]]
    """

    def __init__(
        self, gram: NDArray[Any] | None, damping: float = 0.0, shrinkage: float = 0.0
    ) -> None:
        self.gram, self.damping, self.shrinkage = gram, damping, shrinkage
        self._making = Lock()
        self._feedback = dict[tuple[int, float], tuple[Feedback, ...] | None]()

    @classmethod
    def of(cls, gram: Matrix | None, *, damping: float, shrinkage: float = 0.0) -> Self:
        """Take ``(1 - s) gram + s diag(gram) + damping * (trace(gram) / n) * I``.

        A Gram of few tokens tells apart, as if they were certain, directions that other text uses
        otherwise; what its inputs have in common is the less certain part of it.

        Args:
            gram: Mean of ``x x^T``, symmetric positive semidefinite of shape ``(n, n)``; the blocks
                of a block-diagonal one, shape ``(n / b, b, b)``, of a diagonal one for b = 1; None
                stands for the identity.
            damping: What is added to every eigenvalue, as a fraction of their mean; not negative,
                and positive where the Gram is singular.
            shrinkage: s, from 0 to 1: shrinkage towards the diagonal (Ledoit and Wolf, *A
                well-conditioned estimator for large-dimensional covariance matrices*, J.
                Multivariate Analysis 88, 2004; they shrink towards a multiple of the identity).

        Raises:
            TypeError: If ``gram`` does not hold floating-point numbers.
            ValueError: If ``gram`` is not square, not finite or zero, or ``damping`` or
                ``shrinkage`` is out of range. If the Gram is not positive definite after the
                damping, its first use says so.
        """
        if gram is None:
            return cls(None)
        return cls(check_gram(gram, damping, shrinkage), damping, shrinkage)

    @property
    def size(self) -> int | None:
        """n; None for the identity, which fits every matrix."""
        return None if self.gram is None else gram_side(self.gram)

    @cached_property
    def root(self) -> Float64 | None:
        """L, lower triangular with a positive diagonal, shape ``(n, n)``, float64.

        For a block-diagonal Gram its blocks, shape ``(n / b, b, b)``; None for the identity.

        Raises:
            ValueError: If the Gram is not positive definite after the damping.

        Note:
            ``n b^2 / 3`` operations in float64, b = n without blocks.
        """
        if self.gram is None:
            return None
        return damped_cholesky(damped_gram(self.gram, self.damping, self.shrinkage))

    def feedback(
        self, group_size: int = 1, *, least_damping: float = 0.0
    ) -> tuple[Feedback, ...] | None:
        """Return the triangular factors for rounding, one for each block: see `Feedback`.

        Args:
            group_size: Neighbouring entries that share a scale; 1 where there are no groups.
            least_damping: What the damping is raised to where it is less.

        Returns:
            None where no entry minds another: for the identity, and without groups a diagonal.

        Raises:
            ValueError: If the Gram is not positive definite after the damping.

        Note:
            Made once, for any number of threads that ask. ``n^3 / 3`` operations in float64 for a
            Gram without blocks, and four float32 matrices of its shape while it is factored, two of
            which are kept.
        """
        if self.gram is None:
            return None
        key = group_size, max(self.damping, least_damping)
        with self._making:
            if key not in self._feedback:
                self._feedback[key] = feedback_by_power(
                    self.gram, key[1], group_size, self.shrinkage
                )
            return self._feedback[key]

    def times_root(self, A: NDArray[Any]) -> NDArray[Any]:
        """Return ``A @ L`` for ``A (k, n)``, float64; ``A`` itself for the identity."""
        if self.root is None or self.root.ndim == 2:
            return A if self.root is None else A @ self.root
        return self._per_block(A.T, lambda block, rows: block.T @ rows).T

    def root_times(self, A: NDArray[Any]) -> NDArray[Any]:
        """Return ``L.T @ A`` for ``A (n, k)``, float64; ``A`` itself for the identity."""
        if self.root is None or self.root.ndim == 2:
            return A if self.root is None else self.root.T @ A
        return self._per_block(A, lambda block, rows: block.T @ rows)

    def inverse_root_times(self, A: NDArray[Any]) -> NDArray[Any]:
        """Return ``inverse(L.T) @ A`` for ``A (n, k)``, float64: undo `root_times`."""
        if self.root is None or self.root.ndim == 2:
            return A if self.root is None else linalg.solve_transposed(self.root, A)
        return self._per_block(A, linalg.solve_transposed)

    def _per_block(
        self, A: NDArray[Any], f: Callable[[Float64, NDArray[Any]], NDArray[Any]]
    ) -> Float64:
        """Apply ``f`` to every block of L and the rows of ``A (n, k)`` that it meets."""
        assert self.root is not None
        side = self.root.shape[1]
        if side == 1:  # one number at a time would take a call for each
            one = self.root[:, 0]
            return A / one if f is linalg.solve_transposed else A * one
        result = np.empty(A.shape)
        for start, block in zip(range(0, len(A), side), self.root, strict=True):
            result[start : start + side] = f(block, A[start : start + side])
        return result


IDENTITY = GramRoot(None)
"""The Gram that weighs every direction alike."""
