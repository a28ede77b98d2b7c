"""Pop's identity, with sympy's exact rank as the judge."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import dropwhile

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plastic_select import RankIdentity, gcd_and_lcm, horner, rank_identity

small = st.integers(-2, 2)
polynomials = st.lists(small, min_size=1, max_size=4)
integer_matrices = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(small, min_size=n, max_size=n), min_size=n, max_size=n)
)

X, X_LESS_1, X_LESS_2 = [1, 0], [1, -1], [1, -2]
IDEMPOTENT = np.array([[2, -2, -4], [-1, 3, 4], [1, -2, -3]])


def jordan(*blocks: tuple[float, int]) -> NDArray[np.float64]:
    n = sum(size for _, size in blocks)
    J, start = np.zeros((n, n)), 0
    for eigenvalue, size in blocks:
        block = eigenvalue * np.eye(size) + np.eye(size, k=1)
        J[start : start + size, start : start + size] = block
        start += size
    return J


def times(p: Sequence[Fraction | int], q: Sequence[Fraction | int]) -> list[Fraction]:
    """The product of two polynomials, without leading zeros."""
    product = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            product[i + j] += a * b
    return list(dropwhile(lambda c: c == 0, product))


def exact_ranks(M: NDArray[np.float64], *polynomials: Sequence[object]) -> list[int]:
    matrix, ranks = sympy.Matrix(M.astype(int).tolist()), []
    for polynomial in polynomials:
        p = sympy.zeros(len(M))
        for c in polynomial:
            p = p * matrix + sympy.Rational(str(c)) * sympy.eye(len(M))
        ranks.append(int(p.rank()))
    return ranks


def agrees_with_sympy(M: NDArray[np.float64], f: list[int], g: list[int]) -> bool:
    found = rank_identity(M, f, g)
    expected = exact_ranks(M, f, g, *gcd_and_lcm(f, g))
    ranks = [found.rank_f, found.rank_g, found.rank_gcd, found.rank_lcm]
    return found.holds and found.defect == 0 and ranks == expected


@given(integer_matrices, polynomials, polynomials)
def test_integer_matrices_have_their_exact_ranks_and_no_defect(
    M: list[list[int]], f: list[int], g: list[int]
) -> None:
    assert agrees_with_sympy(np.array(M, np.float64), f, g)


@given(integer_matrices, polynomials, polynomials)
def test_symmetric_integer_matrices_have_their_exact_ranks_and_no_defect(
    M: list[list[int]], f: list[int], g: list[int]
) -> None:
    square = np.array(M, np.float64)
    assert agrees_with_sympy(square + square.T, f, g)


def test_an_idempotent_matrix_splits_the_space() -> None:
    assert (IDEMPOTENT @ IDEMPOTENT == IDEMPOTENT).all()
    assert rank_identity(IDEMPOTENT, X, X_LESS_1) == RankIdentity(2, 1, 3, 0, 0, True)


@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_an_orthogonal_projector_splits_the_space(k: int) -> None:
    Q, _ = np.linalg.qr(np.random.default_rng(k).standard_normal((12, 12)))
    P = Q[:, :k] @ Q[:, :k].T
    P = (P + P.T) / 2
    assert rank_identity(P, X, X_LESS_1) == RankIdentity(k, 12 - k, 12, 0, 0, True)


def test_an_oblique_projector_splits_the_space() -> None:
    rng = np.random.default_rng(0)
    B, C = rng.standard_normal((10, 4)), rng.standard_normal((10, 4))
    P = B @ np.linalg.solve(C.T @ B, C.T)
    assert rank_identity(P, X, X_LESS_1) == RankIdentity(4, 6, 10, 0, 0, True)


def test_powers_of_a_nilpotent_matrix_lose_one_rank_each() -> None:
    assert rank_identity(jordan((0, 5)), [1, 0, 0], [1, 0, 0, 0]) == RankIdentity(
        3, 2, 3, 2, 0, True
    )


@pytest.mark.parametrize(
    ("f", "g"),
    [
        ([1, -4, 4], [1, -5, 6]),  # (x - 2)^2 and (x - 2)(x - 3)
        ([1, -6, 12, -8], [1, -2]),  # (x - 2)^3 and x - 2
        ([1, 0, 0], [1, -3]),
        ([0], [1, -2]),
        ([7], [0]),
    ],
)
def test_jordan_blocks_have_their_exact_ranks_and_no_defect(f: list[int], g: list[int]) -> None:
    assert agrees_with_sympy(jordan((2, 3), (2, 1), (3, 2), (0, 2)), f, g)


def test_undecided_eigenvalues_are_counted_by_the_least_common_multiple() -> None:
    H = np.diag([1.0, 1.0, 1.0, 0.5, 0.25, 0.0])
    found = rank_identity(H, X, X_LESS_1)
    assert (len(H) - found.rank_g, found.rank_f, found.rank_lcm) == (3, 5, 2)


def test_an_eigenvalue_at_the_edge_of_rounding_leaves_a_defect_that_a_tolerance_allows() -> None:
    M = np.diag([1.0, 0.5, 4e-15])  # above the rounding of x, below that of x (x - 1)
    f, g = [1, -1, 0], [1, -2, 0]
    assert rank_identity(M, f, g) == RankIdentity(1, 2, 3, 1, -1, False)
    assert rank_identity(M, f, g, tolerance=1).holds


@given(integer_matrices, polynomials)
def test_horner_is_the_sum_of_powers(M: list[list[int]], c: list[int]) -> None:
    matrix = np.array(M)
    powers = [np.linalg.matrix_power(matrix, i) for i in range(len(c))]
    total = sum(c_i * power for c_i, power in zip(reversed(c), powers, strict=True))
    assert (horner(c, matrix) == total).all()


@given(polynomials, polynomials)
def test_gcd_times_lcm_is_the_product(f: list[int], g: list[int]) -> None:
    d, m = gcd_and_lcm(f, g)
    product, expected = times(d, m), times(f, g)
    assert [c * expected[0] for c in product] == expected


def test_floats_and_fractions_are_taken_exactly() -> None:
    half = Fraction(1, 2)
    x_less_half = (Fraction(1), -half)
    assert gcd_and_lcm([2.0, -1.0], [1, -half]) == (x_less_half, x_less_half)
    d, m = gcd_and_lcm([np.float32(1), np.int64(-1)], [1, 0])
    assert [list(d), list(m)] == [[1], [1, -1, 0]]


def test_one_tenth_in_binary_is_not_one_tenth() -> None:
    assert list(gcd_and_lcm([1, -0.1], [10, -1])[0]) == [1]


@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], ["x"], [1j]])
def test_coefficients_that_are_not_finite_and_real_are_refused(bad: list[object]) -> None:
    with pytest.raises(ValueError, match="`f` must hold finite real coefficients"):
        gcd_and_lcm(bad, X)  # type: ignore[arg-type]


def test_a_polynomial_without_coefficients_is_refused() -> None:
    with pytest.raises(ValueError, match="`coefficients` must hold at least one coefficient"):
        horner([], np.eye(2))


def test_a_matrix_that_is_not_square_is_refused_with_its_shape() -> None:
    for call in (lambda A: horner(X, A), lambda A: rank_identity(A, X, X_LESS_1)):
        with pytest.raises(ValueError, match=r"`M` must be square, got shape \(2, 3\)"):
            call(np.ones((2, 3)))


@pytest.mark.parametrize("M", [[[1e200, 0.0], [1.0, 1.0]], [[1e200, 0.0], [0.0, 1.0]]])
def test_a_polynomial_that_overflows_is_refused(M: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="overflows on it"):
        rank_identity(M, [1, 0, 0], X_LESS_2)
