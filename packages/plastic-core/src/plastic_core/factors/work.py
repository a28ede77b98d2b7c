"""The predicted work of a factorisation, exact or randomised.

The unit is one multiply-add of a large float32 product. The weights were fitted on NumPy's
OpenBLAS with two cores; only ratios matter, and only near the point where both take as long.
"""

from __future__ import annotations

SVD = 31.0
"""Per k^3: float64 singular value decomposition of a k x k matrix."""
QR = 4.0
"""Per m k^2: float32 QR of the matrix and the product with its orthogonal factor."""
THIN_PRODUCT = 1.6
"""Per multiply-add of a product with one block of columns."""
SPECTRUM = 25.0
"""Per d^3: the looks at the spectrum of a d x d matrix and its eigenvectors."""
EXTENSION = 1e8
"""Per block: orthogonalisation, Python."""
SPACE = 1.75
"""Dimension of the Krylov space per rank."""


def block_size(rank: int) -> int:
    """Return the columns of a block, a power of two: fewer give a better space more slowly.

    A heuristic, the fastest of 16, 32, 64 and 128 for ranks of 64, 256 and 1024.
    """
    return 64 if rank > 512 else 32 if rank > 48 else 16


def exact_work(shape: tuple[int, int]) -> float:
    """Predict the work of a thin singular value decomposition."""
    k, longer = min(shape), max(shape)
    return SVD * k**3 + (QR * longer * k**2 if longer > k else 0.0)


def randomized_work(shape: tuple[int, int], rank: int) -> float:
    """Predict the work of finding the ``rank`` leading triplets."""
    (m, n), block = shape, block_size(rank)
    d = min(m, n, SPACE * rank + block)
    products = THIN_PRODUCT * (2 * m * n * d + 2 * (m + n) * d**2)
    return products + SPECTRUM * d**3 + EXTENSION * d / block
