"""The factors that a layer begins with: the best for a weight, or none."""

import mlx.core as mx

from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import factorized_lowrank
from plastic_core.layer.checks import cast_factors
from plastic_core.linalg import Matrix, as_matrix, thin_svd
from plastic_core.loss.weighted import output_basis


def best_factors(W: mx.array, rank: int, gram: Matrix | None) -> Factors:
    """Return the best approximation of ``W`` under ``gram``, in the dtype of ``W``."""
    if rank == 0:
        return empty_factors(W)
    if gram is None:
        factors = factorized_lowrank(W, rank)
    else:
        A, U = as_matrix(W, "weight"), output_basis(W, gram=gram).U[:, :rank]
        P, S, Vh = thin_svd(U.T @ A)
        factors = Factors(mx.array(U @ P), mx.array(S), mx.array(Vh))
    return cast_factors(factors, 3 * [W.dtype])


def empty_factors(W: mx.array) -> Factors:
    """Return a plastic part of rank 0 for ``W``."""
    (out, inner), dtype = W.shape, W.dtype
    return Factors(mx.zeros((out, 0), dtype), mx.zeros(0, dtype), mx.zeros((0, inner), dtype))
