"""Matrices that are known by their products: dense, factored, quantised, differences of these."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import DTypeLike, NDArray

from plastic_core.factors.balancing import factor_norm
from plastic_core.factors.factors import Factors
from plastic_core.factors.quantize import QuantizedFactors, dequantize_factors
from plastic_core.linalg import (
    Float32,
    Float64,
    Matrix,
    as_matrix,
    blocks,
    place,
    squared_norm,
    to_numpy,
)

EPS = float(np.finfo(np.float32).eps)
"""Spacing of float32 at 1."""
LEAST_NORM = float(np.finfo(np.float32).tiny) / EPS
"""Products of smaller numbers round as subnormals do."""


class Operator(ABC):
    """A finite float32 matrix of which only a block of rows need exist at any time.

    Attributes:
        shape: ``(m, n)``.

    Examples:
        >>> A = difference(np.eye(3), np.ones((3, 3)))
        >>> A.shape, A.rows(slice(0, 1)).tolist(), round(A.norm() ** 2, 6)
        ((3, 3), [[0.0, -1.0, -1.0]], 6.0)
    """

    shape: tuple[int, int]

    @property
    def max_rank(self) -> int:
        """The largest rank that the shape, or what is known of the matrix, allows."""
        return min(self.shape)

    @abstractmethod
    def rows(self, rows: slice, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Some rows as a dense block, computed in ``dtype``."""

    def times(self, X: Float32) -> Float32:
        """Return the product ``A @ X`` for ``X (n, c)``."""
        return np.concatenate([self.rows(rows) @ X for rows in self._slices()])

    def transposed_times(self, Y: Float32) -> Float32:
        """Return the product ``A.T @ Y`` for ``Y (m, c)``."""
        Z = np.zeros((self.shape[1], Y.shape[1]), np.float32)
        for rows in self._slices():
            Z += self.rows(rows).T @ Y[rows]
        return Z

    def normal_times(self, x: Float64, scale: float, dtype: DTypeLike = np.float32) -> Float64:
        """Return the product ``A.T @ (A @ x)`` for a vector, in one pass, computed in ``dtype``.

        ``scale`` is of the order of ``1 / ||A||``: between the products it keeps a magnitude in
        range whose square is not.
        """
        z, narrow = np.zeros(self.shape[1]), x.astype(dtype)
        for rows in self._slices():
            block = self.rows(rows, dtype)
            z += block.T @ _scaled(block @ narrow, scale, dtype)
        return z / scale

    def norm(self) -> float:
        """Return ``||A||_F``, exact to 1e-3 whatever cancels."""
        norm = math.sqrt(self.squared_norm())
        return norm if norm >= self.roundoff() else math.sqrt(self.squared_norm(np.float64))

    def precision(self, norm: float) -> DTypeLike:
        """Float32, unless rounding would show in a matrix of that norm."""
        return np.float32 if norm >= self.roundoff() else np.float64

    def squared_norm(self, dtype: DTypeLike = np.float32) -> float:
        """Return ``||A||_F^2``: entries computed in ``dtype``, squares summed in float64."""
        return sum(squared_norm(self.rows(rows, dtype)) for rows in self._slices())

    def roundoff(self) -> float:
        """Return the norm from which on float32 is precise enough."""
        return LEAST_NORM

    def _slices(self) -> Iterator[slice]:
        return blocks(*self.shape)


class Dense(Operator):
    """A matrix in memory; its products run on MLX's default device (`linalg.place`)."""

    def __init__(self, A: Matrix, name: str = "A") -> None:
        self.A = as_matrix(A, name)
        self.shape = (self.A.shape[0], self.A.shape[1])

    @cached_property
    def _placed(self) -> Matrix:
        return place(self.A)

    def rows(self, rows: slice, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        return self.A[rows].astype(dtype, copy=False)

    def times(self, X: Float32) -> Float32:
        return to_numpy(self._placed @ place(X))

    def transposed_times(self, Y: Float32) -> Float32:
        return to_numpy(self._placed.T @ place(Y))


class LowRank(Operator):
    """The product ``U @ Vh`` of ``U (m, r)`` and ``Vh (r, n)``."""

    def __init__(self, U: Matrix, Vh: Matrix) -> None:
        self.U, self.Vh = as_matrix(U, "U"), as_matrix(Vh, "Vh")
        self.shape = (self.U.shape[0], self.Vh.shape[1])

    @property
    def rank(self) -> int:
        """Number of columns of ``U``."""
        return int(self.U.shape[1])

    def rows(self, rows: slice, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        U, Vh = self.U[rows].astype(dtype, copy=False), self.Vh.astype(dtype, copy=False)
        product: NDArray[Any] = U @ Vh
        return product

    @property
    def max_rank(self) -> int:
        return min(*self.shape, self.rank)

    def plus(self, other: LowRank, *, sign: float = 1.0) -> LowRank:
        """Return ``self + sign * other``, its factors side by side."""
        right = np.concatenate([self.Vh, np.float32(sign) * other.Vh])
        return LowRank(np.concatenate([self.U, other.U], axis=1), right)

    def squared_norm(self, dtype: DTypeLike = np.float32) -> float:
        return factor_norm(self.U, np.ones(self.rank, np.float32), self.Vh) ** 2

    def roundoff(self) -> float:
        """Return a multiple of what products lose: at most ``eps sqrt(r)`` of cancelling terms.

        What rounding adds is not correlated with what is there, so it enters the norm in
        quadrature, beside a correlation by chance of ``1 / sqrt(m n)``.
        """
        terms = math.sqrt(_energies(self.U) @ _energies(self.Vh.T))
        margin = 32 * max(1.0, 32 / math.sqrt(max(1, math.prod(self.shape))))
        return LEAST_NORM + margin * EPS * math.sqrt(self.rank + 1) * terms

    def times(self, X: Float32) -> Float32:
        return self.U @ (self.Vh @ X)

    def transposed_times(self, Y: Float32) -> Float32:
        return self.Vh.T @ (self.U.T @ Y)


class Quantized(Operator):
    """The weight of an ``nn.QuantizedLinear``, dequantised a block of rows at a time."""

    def __init__(self, layer: nn.QuantizedLinear) -> None:
        self.layer = layer
        rows, packed = layer.weight.shape
        self.shape = (rows, packed * 32 // layer.bits)

    def rows(self, rows: slice, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        layer = self.layer
        biases = layer.get("biases")
        block = mx.dequantize(
            layer.weight[rows],
            layer.scales[rows],
            None if biases is None else biases[rows],
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
            stream=mx.cpu,
        )
        return as_matrix(block, "weight").astype(dtype, copy=False)


class Difference(Operator):
    """The difference ``A - B`` of two operators of one shape."""

    def __init__(self, A: Operator, B: Operator) -> None:
        self.A, self.B, self.shape = A, B, A.shape

    def rows(self, rows: slice, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # infinite, and so is the norm
            difference: NDArray[Any] = self.A.rows(rows, dtype) - self.B.rows(rows, dtype)
        return difference

    def roundoff(self) -> float:
        return self.A.roundoff() + self.B.roundoff()


class Residual(Difference):
    """The residual ``A - U @ Vh``; its products cost O((m + n) r) more than those of ``A``."""

    B: LowRank

    def __init__(self, A: Operator, U: Matrix, Vh: Matrix) -> None:
        super().__init__(A, LowRank(U, Vh))

    def times(self, X: Float32) -> Float32:
        return self.A.times(X) - self.B.times(X)

    def transposed_times(self, Y: Float32) -> Float32:
        return self.A.transposed_times(Y) - self.B.transposed_times(Y)

    def normal_times(self, x: Float64, scale: float, dtype: DTypeLike = np.float32) -> Float64:
        U, Vh = self.B.U.astype(dtype, copy=False), self.B.Vh.astype(dtype, copy=False)
        narrow = x.astype(dtype)
        inner, z, total = Vh @ narrow, np.zeros(self.shape[1]), np.zeros(self.B.rank)
        for rows in self._slices():
            block = self.A.rows(rows, dtype)
            y = _scaled(block @ narrow - U[rows] @ inner, scale, dtype)
            z += block.T @ y
            total += U[rows].T @ y
        z -= Vh.T @ total.astype(dtype)
        return z / scale


def _energies(M: Matrix) -> Float64:
    energies: Float64 = np.einsum("ij,ij->j", M, M, dtype=np.float64)
    return energies


def _scaled(y: NDArray[Any], scale: float, dtype: DTypeLike) -> NDArray[Any]:
    return (y.astype(np.float64) * scale).astype(dtype)


Operand = Matrix | Factors | QuantizedFactors | nn.Linear | nn.QuantizedLinear | Operator


def as_operator(A: Operand, name: str = "A") -> Operator:
    """Return ``A`` as an operator; a dense matrix must be finite, and shares the caller's memory.

    Args:
        A: A matrix, factors, quantised or not, a linear or quantised linear layer (its weight), or
            an operator.
        name: What error messages call it.

    Raises:
        TypeError: If a matrix does not hold floating-point numbers.
        ValueError: If it is not a matrix, or not finite.
    """
    if isinstance(A, Operator):
        return A
    if isinstance(A, QuantizedFactors):
        A = dequantize_factors(A)
    if isinstance(A, Factors):
        U, S, Vh = (to_numpy(factor) for factor in A)
        return LowRank(U.astype(np.float32) * S.astype(np.float32), Vh)
    if isinstance(A, nn.QuantizedLinear):
        return Quantized(A)
    return Dense(A.weight if isinstance(A, nn.Linear) else A, name)


def difference(A: Operand, B: Operand) -> Operator:
    """Return ``A - B``, never formed; `factorized_lowrank` and `certify` take it as a matrix.

    Args:
        A: A matrix, `Factors`, `QuantizedFactors`, an ``nn.Linear``, an ``nn.QuantizedLinear``, or
            an operator.
        B: The same, of the same shape.

    Returns:
        An operator that computes a block of at most 16 MiB of the difference at a time; where both
        are factored, one that never computes any.

    Raises:
        ValueError: If the shapes differ or an entry is not finite.

    Examples:
        >>> E = difference(np.diag(np.float32([3, 2])), np.diag(np.float32([3, 1])))
        >>> E.rows(slice(None)).tolist()
        [[0.0, 0.0], [0.0, 1.0]]
    """
    left, right = as_operator(A, "A"), as_operator(B, "B")
    if left.shape != right.shape:
        raise ValueError(
            f"`A` and `B` must have one shape to be subtracted, got {left.shape} and {right.shape}."
        )
    if not isinstance(right, LowRank):
        return Difference(left, right)
    if isinstance(left, LowRank):
        return left.plus(right, sign=-1.0)
    return Residual(left, right.U, right.Vh)
