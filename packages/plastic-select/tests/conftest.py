"""Matrices with a known spectrum, and how closely one can ask for it back."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

Build = Callable[[Sequence[float], int, int, int], NDArray[np.float64]]
Tolerance = Callable[[tuple[int, int], float], float]


@pytest.fixture(scope="session")
def matrix_from_spectrum() -> Build:
    """``(s, m, n, seed)`` to an (m, n) matrix with the singular values s, then zeros."""

    def build(s: Sequence[float], m: int, n: int, seed: int) -> NDArray[np.float64]:
        rng = np.random.default_rng(seed)
        U, _ = np.linalg.qr(rng.standard_normal((m, len(s))))
        V, _ = np.linalg.qr(rng.standard_normal((n, len(s))))
        product: NDArray[np.float64] = U @ np.diag(np.asarray(s, np.float64)) @ V.T
        return product

    return build


@pytest.fixture(scope="session")
def tolerance() -> Tolerance:
    """``(shape, sigma_1)`` to the rounding that a float64 factorisation may show."""
    eps = float(np.finfo(np.float64).eps)
    return lambda shape, sigma_1: 10 * max(shape) * eps * sigma_1
