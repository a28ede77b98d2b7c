"""Spectra and changes of basis through Gram matrices, beside factorisations of dense matrices."""

import numpy as np
import pytest
from plastic_core.factors import product_spectrum, right_map


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("S", [[3.0, -1.0, 1e-4, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0] * 4])
def test_the_spectrum_is_that_of_the_dense_product(S: list[float]) -> None:
    U, Vh = drawn((12, 4), (4, 9))
    found = product_spectrum(U, np.float32(S), Vh)
    dense = (U.astype(np.float64) * np.float32(S)) @ Vh.astype(np.float64)
    wanted = np.linalg.svd(dense, compute_uv=False)[:4]
    assert np.abs(found - wanted).max() <= 3e-8 * wanted[0]


def test_no_components_have_no_spectrum() -> None:
    assert product_spectrum(*drawn((5, 0), (0,), (0, 3))).shape == (0,)


def test_a_map_is_exact_in_the_span_and_leaves_out_what_is_lost_in_rounding() -> None:
    old, X = drawn((30, 4), (4, 3))
    found = right_map(old, old @ X)
    assert np.abs(found - X).max() <= 1e-5
    # The last column repeats the first up to rounding: no entry may explode.
    dependent = np.concatenate([old, old[:, :1] * (1 + np.float32(1e-7))], axis=1)
    found = right_map(dependent, old @ X)
    assert np.abs(found).max() <= 2 * np.abs(X).max()
    assert np.abs(dependent @ found - old @ X).max() <= 1e-4
