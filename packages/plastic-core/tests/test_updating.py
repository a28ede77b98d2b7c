"""Factors that grow and add up are those of starting again."""

import numpy as np
from plastic_core import add_factors, difference, factorized_lowrank, grow_factors
from plastic_core.testing import assert_orthonormal, matrix_from_spectrum, tolerance


def test_growing_equals_starting_again() -> None:
    s = 1 / np.arange(1.0, 241)
    A = matrix_from_spectrum(s, 240, 300, seed=1).astype(np.float32)
    grown = grow_factors(A, factorized_lowrank(A, 12), 40)
    least = np.linalg.norm(s[40:]) / np.linalg.norm(s)
    assert grown.certificate.relative_error <= 1.01 * least
    assert_orthonormal(grown.U)


def test_a_sum_and_a_difference_of_factors_are_never_formed() -> None:
    A, B = (
        matrix_from_spectrum(np.array([3.0, 2.0, 1.0]), 50, 40, seed=k).astype(np.float32)
        for k in (1, 2)
    )
    a, b = factorized_lowrank(A, 3), factorized_lowrank(B, 3)
    total, rest = add_factors(a, b), factorized_lowrank(difference(a, b), 6)
    for factors, dense in ((total, A + B), (rest, A - B)):
        U, S, Vh = (np.asarray(f, np.float64) for f in factors)
        assert np.linalg.norm((U * S) @ Vh - dense, 2) <= tolerance(6.0, dense.shape)
