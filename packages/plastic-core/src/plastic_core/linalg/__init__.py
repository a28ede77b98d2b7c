"""Factorisations and products; nothing outside this room calls a factorisation.

Thin always, finite going in and coming out, float32 matrices sharing memory between NumPy and MLX.
LAPACK is NumPy's on every platform: it works in float64, so what reaches it is square and small, a
QR in float32 comes first. Large products run on MLX's default device (`device`).
"""

from plastic_core.linalg.arrays import (
    Float32,
    Float64,
    Matrix,
    as_matrix,
    as_vector,
    blocks,
    check_finite,
    to_numpy,
)
from plastic_core.linalg.device import on_cpu, on_gpu, place
from plastic_core.linalg.lapack import cholesky, eigh, solve_transposed
from plastic_core.linalg.norms import (
    frobenius_norm,
    spectral_norm,
    squared_norm,
)
from plastic_core.linalg.products import gram
from plastic_core.linalg.thin import qr, thin_singular_values, thin_svd
from plastic_core.linalg.threads import in_threads, one_blas_thread, product, using_workers, workers

__all__ = [
    "Float32",
    "Float64",
    "Matrix",
    "as_matrix",
    "as_vector",
    "blocks",
    "check_finite",
    "cholesky",
    "eigh",
    "frobenius_norm",
    "gram",
    "in_threads",
    "on_cpu",
    "on_gpu",
    "one_blas_thread",
    "place",
    "product",
    "qr",
    "solve_transposed",
    "spectral_norm",
    "squared_norm",
    "thin_singular_values",
    "thin_svd",
    "to_numpy",
    "using_workers",
    "workers",
]
