"""A bound of the norm of what is left out is above it, and not far."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from plastic_core.testing import matrix_from_spectrum
from plastic_export.dialling.certificates import product_norm_bound


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.integers(0, 99))
def test_the_bound_holds(values: list[float], seed: int) -> None:
    s, k = np.sort(values)[::-1], len(values)
    product = matrix_from_spectrum(s, 24, 40, seed=seed)
    U, kept, Vh = np.linalg.svd(product, full_matrices=False)
    Ut, V = (U[:, :k] * kept[:k]).T.astype(np.float32), Vh[:k].astype(np.float32)
    bound = product_norm_bound(Ut, V)
    assert s[0] * (1 - 1e-5) <= bound <= s[0] * k ** (1 / 16) * (1 + 1e-5)


def test_nothing_has_no_norm() -> None:
    nothing = np.zeros((0, 4), np.float32), np.zeros((0, 5), np.float32)
    zeros = np.zeros((2, 4), np.float32), np.ones((2, 5), np.float32)
    assert product_norm_bound(*nothing) == product_norm_bound(*zeros) == 0.0
