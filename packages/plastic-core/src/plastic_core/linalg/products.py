"""Sums of products, accumulated in float64 over blocks that fit a cache."""

from __future__ import annotations

import numpy as np

from plastic_core.linalg.arrays import Float32, Float64, Matrix, as_matrix, blocks


def gram(X: Matrix) -> Float64:
    """Return ``X.T @ X``, accumulated in float64 over blocks of rows.

    Args:
        X: Matrix of shape ``(tokens, n)``: one input of a layer per row.

    Returns:
        Symmetric positive semidefinite matrix of shape ``(n, n)``, float64.

    Examples:
        >>> gram(np.array([[1.0, 2.0], [0.0, 1.0]])).tolist()
        [[1.0, 2.0], [2.0, 5.0]]
    """
    X = as_matrix(X, "X")
    total = np.zeros((X.shape[1], X.shape[1]))
    for rows in blocks(*X.shape):
        block = X[rows].astype(np.float64)
        total += block.T @ block
    return total


def multiply(A: Float32, x: Float64) -> Float64:
    """Return ``A @ x`` for a vector, in float64, widening one block of rows at a time."""
    y = np.empty(len(A))
    for rows in blocks(*A.shape):
        y[rows] = A[rows].astype(np.float64) @ x
    return y
