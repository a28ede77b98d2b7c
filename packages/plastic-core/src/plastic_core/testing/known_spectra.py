"""Hypothesis strategies and tolerances for matrices whose spectrum is known.

Draw the spectrum, not the entries: energy, tail, norms, rank and the least possible error are then
known without computing them. Needs the extra ``plastic-core[testing]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from plastic_core.linalg import Float32, Float64, Matrix, lapack, to_numpy

repeatable = settings(derandomize=True, deadline=None)
"""Decorator: the same examples in every run, as many as the profile says, however slow."""

EPS = float(np.finfo(np.float32).eps)
"""Of float32, which the layers compute in."""

SCALES = (2.0**-100, 1.0, 2.0**100)
"""Magnitudes whose squares leave float32 on either side, and one between."""


class Sample(NamedTuple):
    """A matrix and what it was made from.

    Attributes:
        A: Shape ``(m, n)``, float32.
        singular_values: Shape ``(min(m, n),)``, float64, non-increasing.

    Examples:
        >>> s = np.array([2.0, 1.0])
        >>> Sample(matrix_from_spectrum(s, 3, 2, seed=0).astype(np.float32), s).A.shape
        (3, 2)
    """

    A: Float32
    singular_values: Float64


@st.composite
def spectra(
    draw: st.DrawFn,
    *,
    min_size: int = 1,
    max_size: int = 16,
    scales: Sequence[float] = (1.0,),
) -> Float64:
    """Spectra: float64, non-increasing, non-negative; with zeros, ties, flat and steep ones.

    Args:
        draw: Given by Hypothesis.
        min_size: Least number of singular values.
        max_size: Largest number of singular values.
        scales: The whole spectrum is multiplied by one of these.

    Examples:
        >>> from hypothesis import given
        >>> @repeatable
        ... @given(spectra(max_size=3))
        ... def never_increases(s: Float64) -> None:
        ...     assert (np.diff(s) <= 0).all()
        >>> never_increases()
    """
    value = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(2.0**-20, 1.0))
    values = draw(st.lists(value, min_size=min_size, max_size=max_size))
    return np.sort(np.array(values, dtype=np.float64))[::-1] * draw(st.sampled_from(scales))


@st.composite
def matrices(draw: st.DrawFn, *, max_side: int = 24, scales: Sequence[float] = (1.0,)) -> Sample:
    """Matrices of 1 to ``max_side`` rows and columns with a drawn spectrum: see `spectra`.

    Examples:
        >>> from hypothesis import given
        >>> @repeatable
        ... @given(matrices(max_side=4))
        ... def has_its_spectrum(sample: Sample) -> None:
        ...     assert min(sample.A.shape) == len(sample.singular_values)
        >>> has_its_spectrum()
    """
    sides = st.integers(1, max_side)
    m, n, seed = draw(sides), draw(sides), draw(st.integers(0, 2**16))
    s = draw(spectra(min_size=min(m, n), max_size=min(m, n), scales=scales))
    return Sample(matrix_from_spectrum(s, m, n, seed).astype(np.float32), s)


anything = matrices(scales=SCALES)
"""Matrices of any of the magnitudes."""


def matrix_from_spectrum(s: Float64, m: int, n: int, seed: int) -> Float64:
    """Return ``U @ diag(s) @ V.T`` with random orthonormal U and V.

    Args:
        s: At most ``min(m, n)`` singular values; the others are zero.
        m: Number of rows.
        n: Number of columns.
        seed: Seed of U and V.

    Returns:
        Matrix of shape ``(m, n)``, float64.

    Examples:
        >>> A = matrix_from_spectrum(np.array([2.0, 1.0]), 4, 3, seed=0)
        >>> lapack.svdvals(A).round(9).tolist()
        [2.0, 1.0, 0.0]
    """
    rng = np.random.default_rng(seed)
    U, V = (lapack.svd(rng.standard_normal((side, len(s))))[0] for side in (m, n))
    A: Float64 = (U * s) @ V.T
    return A


def tolerance(of: Matrix | float, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> float:
    """Return the rounding of a backward-stable factorisation: ``10 max(shape) eps sigma_1``.

    Ten times what random matrices show; LAPACK's own tests allow thirty.

    Args:
        of: A matrix, its singular values, or its largest singular value.
        shape: The shape of the matrix.
        dtype: The working precision.

    Examples:
        >>> tolerance(1.0, (100, 50)) == 1000 * float(np.finfo(np.float32).eps)
        True
    """
    values = np.asarray(of if isinstance(of, float) else to_numpy(of), dtype=np.float64)
    values = lapack.svdvals(values) if values.ndim == 2 else np.abs(values)
    return float(10 * max(shape) * np.finfo(dtype).eps * values.max(initial=0.0))


def assert_orthonormal(Q: Matrix) -> None:
    """Assert that the columns of ``Q`` are orthonormal to the precision of float32.

    Examples:
        >>> assert_orthonormal(np.eye(3))
    """
    Q = to_numpy(Q).astype(np.float64)
    defect = np.abs(Q.T @ Q - np.eye(Q.shape[1])).max(initial=0.0)
    assert defect <= tolerance(1.0, Q.shape), f"Q^T Q differs from I by {defect:.1e}"


def bits(array: Matrix) -> bytes:
    """Return the bytes of an array, to compare bits (NaN equals itself, -0.0 is not 0.0).

    Examples:
        >>> bits(np.array([-0.0])) == bits(np.array([0.0]))
        False
    """
    if isinstance(array, mx.array):
        array = np.asarray(array.view(mx.uint8))
    return np.ascontiguousarray(array).tobytes()
