"""Bases stay orthonormal whatever is added to them, and A V = U B whatever A is."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plastic_core import linalg
from plastic_core.factors.bidiagonal import Bidiagonalisation
from plastic_core.factors.growing_basis import GrowingBasis
from plastic_core.factors.operators import as_operator
from plastic_core.linalg import Float32, Float64
from plastic_core.testing import (
    EPS,
    SCALES,
    Sample,
    assert_orthonormal,
    bits,
    matrices,
    matrix_from_spectrum,
    repeatable,
    tolerance,
)

anything = matrices(max_side=40, scales=SCALES)
widths = st.integers(1, 9)
seeds = st.integers(0, 99)


@st.composite
def columns(draw: st.DrawFn, length: int, width: int) -> Float32:
    """Columns from independent to zero: graded, repeated, of any magnitude."""
    rng = np.random.default_rng(draw(seeds))
    Y = rng.standard_normal((length, width))
    Y *= 10.0 ** (-draw(st.sampled_from([0, 1, 4, 9])) * np.arange(width))
    if draw(st.booleans()):
        Y[:, width // 2 :] = Y[:, : width - width // 2]
    return (Y * draw(st.sampled_from([0.0, *SCALES]))).astype(np.float32)


@repeatable
@given(st.integers(1, 40), st.data())
def test_a_basis_is_orthonormal_and_holds_what_was_added(length: int, data: st.DataObject) -> None:
    basis = GrowingBasis(length, length, np.random.default_rng(0))
    while basis.size < length:
        width = data.draw(st.integers(1, length - basis.size))
        Y = data.draw(columns(length, width))
        if basis.size and data.draw(st.booleans()):
            Y[:, 0] = basis.combine(np.ones((basis.size, 1), np.float32))[:, 0]
        old, norm = np.array(basis.rows), float(np.linalg.norm(Y.astype(np.float64)))
        floor = EPS * norm
        Q, C, R = basis.extend(Y, floor)
        assert Q.dtype == np.float32
        assert Q.shape == (length, width)
        assert bits(np.asarray(basis.rows)) == bits(np.vstack([old, Q.T]))
        assert_orthonormal(np.asarray(basis.rows).T)
        missed = Y - old.T.astype(np.float64) @ C - Q.astype(np.float64) @ R
        # Directions shorter than the floor are dropped, at most one for each column.
        assert np.linalg.norm(missed) <= tolerance(norm, Y.shape) + np.sqrt(width) * floor
    P = np.random.default_rng(1).standard_normal((length, 2), dtype=np.float32)
    exact = np.asarray(basis.rows).T.astype(np.float64) @ P
    assert np.abs(basis.combine(P) - exact).max() <= tolerance(float(np.abs(P).sum()), P.shape)


def test_a_direction_that_is_there_already_is_replaced_by_a_random_one() -> None:
    basis = GrowingBasis(30, 30, np.random.default_rng(0))
    first, _, _ = basis.extend(np.eye(30, 4, dtype=np.float32), floor=EPS)
    second, C, R = basis.extend(first * 3, floor=10 * EPS)
    assert np.abs(C - 3 * np.eye(4)).max() <= tolerance(3.0, (30, 4))
    assert not R.any()
    assert_orthonormal(np.hstack([first, second]))


def assert_holds(space: Bidiagonalisation, A: Float32, s: Float64) -> None:
    """What the docstring promises, at any size of the space."""
    T = (A.T if A.shape[0] < A.shape[1] else A).astype(np.float64)
    U, V = (np.asarray(side.rows).T.astype(np.float64) for side in (space.U, space.V))
    limit, k = tolerance(s, A.shape), space.size
    assert U.shape == (T.shape[0], k)
    assert V.shape == (T.shape[1], k)
    assert_orthonormal(U)
    assert_orthonormal(V)
    assert np.linalg.norm(T @ V - U @ space.B) <= limit
    values = space.spectrum()
    assert values.shape == (k,)
    assert (np.diff(values) <= 0).all()
    assert (values <= s[:k] + limit).all()
    # The energies agree to float32's rounding of their sum, so the norms do to its root.
    energy = float(np.sum(s**2))
    expected = np.sqrt(max(0.0, energy - float(np.sum(space.B**2))))
    missed = np.linalg.norm(T - T @ V @ V.T)
    assert abs(missed - expected) <= np.sqrt(EPS * max(A.shape) * energy)


@repeatable
@given(anything, st.integers(1, 20), seeds, st.integers(0, 3))
def test_the_space_holds_its_promises_as_it_grows(
    sample: Sample, block: int, key: int, wide_at: int
) -> None:
    A, s = sample
    space = Bidiagonalisation(as_operator(A), linalg.frobenius_norm(A), block, key)
    last, steps = np.zeros(0), 0
    while space.size < space.limit:
        before = space.size
        if steps == wide_at:
            space.widen()
        else:
            space.extend()
            assert space.size == min(before + space.block, space.limit)
        assert_holds(space, A, s)
        values = space.spectrum()
        assert (values[: len(last)] >= last - tolerance(s, A.shape)).all()
        last, steps = values, steps + 1
    assert np.abs(last - s).max() <= tolerance(s, A.shape)


@repeatable
@given(anything, st.integers(1, 20), seeds, st.floats(0, 1))
def test_factors_and_product_are_what_the_space_holds(
    sample: Sample, block: int, key: int, fraction: float
) -> None:
    A, s = sample
    space = Bidiagonalisation(as_operator(A), linalg.frobenius_norm(A), block, key)
    space.grow_to(1 + int(fraction * (min(A.shape) - 1)))
    V = np.asarray(space.V.rows).astype(np.float64)
    held = (A.T if space.wide else A) @ V.T @ V
    held, limit = (held.T if space.wide else held), tolerance(s, A.shape)
    left, right = (F.astype(np.float64) for F in space.product())
    assert np.linalg.norm(left @ right - held) <= limit
    U, S, Vh = space.factors(space.size)
    assert np.linalg.norm((U.astype(np.float64) * S) @ Vh - held) <= limit
    assert_orthonormal(U)
    assert_orthonormal(Vh.T)
    assert (np.diff(S) <= 0).all()
    assert (S >= 0).all()
    leading = space.factors(1)
    assert [F.shape for F in leading] == [(len(A), 1), (1,), (1, A.shape[1])]
    assert abs(leading[1][0] - S[0]) <= limit


@pytest.mark.parametrize("shape", [(50, 70), (70, 50)])
@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01])
def test_the_largest_singular_values_appear_first(shape: tuple[int, int], ratio: float) -> None:
    s = ratio ** np.arange(50.0)
    A = matrix_from_spectrum(s, *shape, seed=1).astype(np.float32)
    space = Bidiagonalisation(as_operator(A), linalg.frobenius_norm(A), 4, key=0)
    space.grow_to(16)
    assert np.abs(space.spectrum()[:4] - s[:4]).max() <= tolerance(s, shape)


def test_blocks_of_b_columns_see_b_copies_of_a_value_and_wider_ones_more() -> None:
    s = np.concatenate([np.full(20, 3.0), np.linspace(1.0, 0.5, 140)])
    A = matrix_from_spectrum(s, 160, 170, seed=0).astype(np.float32)
    space = Bidiagonalisation(as_operator(A), linalg.frobenius_norm(A), 8, key=0)
    space.grow_to(24)
    for copies in (8, 16, 20):
        assert np.sum(space.spectrum() > 2.9) == copies
        space.widen()
    assert space.block == 64


@pytest.mark.parametrize("A", [np.zeros((30, 40)), np.ones((40, 30)), np.eye(35) * 1e-3])
def test_what_has_few_directions_needs_no_special_case(A: Float64) -> None:
    narrow = A.astype(np.float32)
    s = np.linalg.svd(narrow.astype(np.float64), compute_uv=False)
    space = Bidiagonalisation(as_operator(narrow), linalg.frobenius_norm(narrow), 4, key=0)
    while space.size < space.limit:
        space.extend()
        assert_holds(space, narrow, s)


@repeatable
@given(matrices(), st.integers(1, 9), seeds)
@example(Sample(np.eye(24, dtype=np.float32), np.ones(24)), 4, 0)
def test_one_key_gives_one_space(sample: Sample, block: int, key: int) -> None:
    A, _ = sample
    norm = linalg.frobenius_norm(A)
    one, two = (Bidiagonalisation(as_operator(A), norm, block, key) for _ in range(2))
    one.grow_to(17)
    two.grow_to(17)
    assert bits(one.B) == bits(two.B)
    assert bits(np.asarray(one.V.rows)) == bits(np.asarray(two.V.rows))
