"""The device of large products: MLX's default one where that is an exact GPU, else NumPy.

MLX's CPU matrix product on Linux is reference BLAS, about 40 times slower than NumPy's. On CUDA and
on Apple's M5 MLX multiplies float32 matrices in TF32, 10 bits of mantissa, unless
``MLX_ENABLE_TF32=0`` is set before the first operation: no base for a certified factorisation.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np

from plastic_core.linalg.arrays import Float32, Matrix, to_numpy


def on_cpu() -> bool:
    """Tell whether MLX computes on the CPU: its default device is one.

    Examples:
        >>> with mx.stream(mx.cpu):
        ...     on_cpu()
        True
    """
    return mx.default_device() == mx.Device(mx.cpu)


def on_gpu() -> bool:
    """Tell whether large products run on MLX's default device: a GPU that multiplies in float32.

    Examples:
        >>> with mx.stream(mx.cpu):
        ...     on_gpu()
        False
    """
    return mx.default_device() == mx.gpu and _multiplies_in_float32()


def place(A: Float32) -> Matrix:
    """Return ``A`` where its products should run: the same memory on the CPU, a copy on a GPU.

    Examples:
        >>> A = np.ones((2, 3), np.float32)
        >>> to_numpy(place(A) @ place(A.T)).tolist()
        [[3.0, 3.0], [3.0, 3.0]]
    """
    return mx.array(A) if on_gpu() else A


@cache
def _multiplies_in_float32() -> bool:
    A = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
    exact = A.astype(np.float64) @ A
    error = np.abs(to_numpy(mx.array(A) @ mx.array(A)) - exact).max() / np.abs(exact).max()
    return bool(error < 1e-5)  # float32 errs by 3e-7, TF32 by 3e-4
