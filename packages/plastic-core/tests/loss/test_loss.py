"""Loss-aware factors: what they cost is known beforehand, and nothing of their rank costs less."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import (
    Factors,
    difference,
    error_feedback,
    linalg,
    output_basis,
    priced_corrections,
)
from plastic_core.linalg import Float32, Float64, lapack
from plastic_core.loss.damping import block_side
from plastic_core.loss.gram_root import GramRoot
from plastic_core.loss.loss import loss_factors, loss_spectrum, predicted_cost
from plastic_core.loss.pivots import pivots_of
from plastic_core.testing import (
    EPS,
    assert_orthonormal,
    bits,
    matrices,
    matrix_from_spectrum,
    repeatable,
    tolerance,
)

IDENTITY = GramRoot.of(None, damping=0.0)
SCALES = (2.0**-60, 1.0, 2.0**60)
dampings = st.sampled_from([1e-3, 1e-2, 0.3])


class Side(NamedTuple):
    """A Gram, how far to damp it, and the symmetric square root of the damped Gram."""

    gram: Float64
    damping: float
    square_root: Float64

    @property
    def root(self) -> GramRoot:
        return GramRoot.of(self.gram, damping=self.damping)


class Roots(TypedDict):
    """The keyword arguments."""

    inputs: GramRoot
    outputs: GramRoot


class Problem(NamedTuple):
    """A matrix, and the Grams on its two sides."""

    D: Float32
    inputs: Side
    outputs: Side

    @property
    def roots(self) -> Roots:
        return Roots(inputs=self.inputs.root, outputs=self.outputs.root)

    def whitened(self, E: Float64 | Float32) -> Float64:
        whitened: Float64 = self.outputs.square_root @ E @ self.inputs.square_root
        return whitened

    def limit(self) -> float:
        """Rounding of the weighted norm: the left root and its inverse meet in float32."""
        left, right = self.outputs.square_root, self.inputs.square_root
        size = np.linalg.norm(left, 2) * np.linalg.norm(right, 2) * np.linalg.norm(self.D)
        return tolerance(float(size * np.linalg.cond(left)), self.D.shape)


def side(gram: Float64, damping: float) -> Side:
    values, V = np.linalg.eigh(gram)
    damped = np.maximum(values, 0.0) + damping * np.trace(gram) / len(gram)
    return Side(gram, damping, (V * np.sqrt(damped)) @ V.T)


def make(m: int, n: int, *, seed: int = 0, damping: float = 1e-2) -> Problem:
    rng = np.random.default_rng(seed)
    D = matrix_from_spectrum(np.geomspace(1, 1e-2, min(m, n)), m, n, seed).astype(np.float32)
    grams = (linalg.gram(rng.standard_normal((2 * k, k)) * np.geomspace(1, 0.1, k)) for k in (n, m))
    inputs, outputs = (side(gram, damping) for gram in grams)
    return Problem(D, inputs, outputs)


@st.composite
def sides(draw: st.DrawFn, n: int) -> Side:
    """Grams of full rank or of few tokens, of any magnitude."""
    tokens = draw(st.sampled_from([1, max(1, n // 2), 2 * n]))
    X = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((tokens, n))
    return side(linalg.gram(X) * draw(st.sampled_from(SCALES)) / tokens, draw(dampings))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    D, _ = draw(matrices(max_side=16))
    return Problem(D, draw(sides(D.shape[1])), draw(sides(D.shape[0])))


def flat(result: Any) -> list[Any]:
    """The arrays of a result."""
    return list(result) if isinstance(result, Factors) else [np.asarray(result)]


def dense(factors: Factors) -> Float64:
    U, S, Vh = (np.asarray(factor, dtype=np.float64) for factor in factors)
    product: Float64 = (U * S) @ Vh
    return product


@repeatable
@given(problems())
def test_spectrum_is_that_of_the_matrix_between_the_square_roots(problem: Problem) -> None:
    values = loss_spectrum(problem.D, **problem.roots)
    exact = np.linalg.svd(problem.whitened(problem.D), compute_uv=False)
    assert values.dtype == np.float64
    assert (np.diff(values) <= 0).all()
    assert (values >= 0).all()
    assert np.abs(values - exact).max() <= problem.limit()


@repeatable
@given(problems())
def test_cost_is_half_the_trace_and_half_the_energy_of_the_spectrum(problem: Problem) -> None:
    cost = predicted_cost(problem.D, **problem.roots)
    exact = np.linalg.norm(problem.whitened(problem.D)) ** 2 / 2
    energy = np.sum(loss_spectrum(problem.D, **problem.roots) ** 2)
    assert cost == pytest.approx(exact, rel=1e-9)
    assert cost == pytest.approx(energy / 2, rel=tolerance(1.0, problem.D.shape))


@repeatable
@given(problems())
def test_what_the_factors_miss_is_the_tail_of_the_spectrum(problem: Problem) -> None:
    exact = np.linalg.svd(problem.whitened(problem.D), compute_uv=False)
    for rank in range(1, len(exact) + 1):
        factors = loss_factors(problem.D, rank, **problem.roots)
        missed = np.linalg.norm(problem.whitened(problem.D - dense(factors)))
        assert abs(missed - np.linalg.norm(exact[rank:])) <= problem.limit()


@repeatable
@given(problems(), st.integers(0, 99))
def test_no_rival_of_the_same_rank_costs_less(problem: Problem, seed: int) -> None:
    D, rng = problem.D.astype(np.float64), np.random.default_rng(seed)
    plain, basis = np.linalg.svd(D, full_matrices=False), output_basis(problem.D).U
    for r in {1, max(1, min(D.shape) // 2)}:
        found = loss_factors(problem.D, r, **problem.roots)
        U, Vh = np.asarray(found.U * found.S, np.float64), np.asarray(found.Vh, np.float64)
        rivals = [(plain.U[:, :r] * plain.S[:r]) @ plain.Vh[:r]]
        rivals.append(basis[:, :r] @ (basis[:, :r].T @ D))
        for size in (1e-3, 0.1):
            nudged = Vh + size * np.abs(Vh).max() * rng.standard_normal(Vh.shape)
            rivals += [U @ nudged, D @ np.linalg.pinv(nudged) @ nudged]
        best = np.linalg.norm(problem.whitened(D - dense(found)))
        for rival in rivals:
            assert best <= np.linalg.norm(problem.whitened(D - rival)) + problem.limit()


def test_both_grams_matter() -> None:
    D = np.diag([4.0, 3.0, 1.0])
    inputs = GramRoot.of(np.diag([1.0, 1.0, 100.0]), damping=0.0)
    outputs = GramRoot.of(np.diag([1.0, 4.0, 1.0]), damping=0.0)

    def kept(inputs: GramRoot, outputs: GramRoot) -> int:
        return int(dense(loss_factors(D, 1, inputs=inputs, outputs=outputs)).diagonal().argmax())

    spectrum = loss_spectrum(D, inputs=inputs, outputs=outputs)
    assert spectrum == pytest.approx([10.0, 6.0, 4.0])
    assert [kept(IDENTITY, IDENTITY), kept(IDENTITY, outputs), kept(inputs, outputs)] == [0, 1, 2]


@repeatable
@given(problems())
def test_components_are_orthonormal_under_the_grams_and_s_is_the_spectrum(
    problem: Problem,
) -> None:
    rank = max(1, min(problem.D.shape) // 2)
    inputs, outputs = problem.roots["inputs"], problem.roots["outputs"]
    U, S, Vh = loss_factors(problem.D, rank, **problem.roots)
    assert {U.dtype, S.dtype, Vh.dtype} == {mx.float32}
    assert (U.shape, Vh.shape) == ((len(problem.D), rank), (rank, problem.D.shape[1]))
    values = loss_spectrum(problem.D, **problem.roots)[:rank]
    assert np.abs(np.asarray(S, np.float64) - values).max() <= problem.limit()
    for Q, sure in (
        (outputs.root_times(np.asarray(U, np.float64)), np.ones(rank, bool)),
        (inputs.times_root(np.asarray(Vh, np.float64)).T, values > 1e3 * problem.limit()),
    ):
        defect = np.abs(Q.T @ Q - np.eye(rank))[np.ix_(sure, sure)]
        assert defect.max(initial=0.0) <= 1e-2


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_leading_components_are_the_best_of_every_smaller_rank(shape: tuple[int, int]) -> None:
    problem = make(*shape)
    U, S, Vh = loss_factors(problem.D, 9, **problem.roots)
    tail = np.linalg.svd(problem.whitened(problem.D), compute_uv=False)
    for r in range(1, 9):
        left = problem.D - dense(Factors(U[:, :r], S[:r], Vh[:r]))
        assert (
            abs(np.linalg.norm(problem.whitened(left)) - np.linalg.norm(tail[r:]))
            <= problem.limit()
        )


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_without_an_output_gram_the_factors_are_those_of_the_output_basis(
    shape: tuple[int, int],
) -> None:
    problem = make(*shape)
    inputs = problem.inputs.root
    factors = loss_factors(problem.D, 5, inputs=inputs, outputs=IDENTITY)
    gram = problem.inputs.square_root @ problem.inputs.square_root
    U = output_basis(problem.D, gram=gram).U[:, :5]
    assert np.abs(dense(factors) - U @ (U.T @ problem.D)).max() <= 10 * tolerance(1.0, shape)
    assert_orthonormal(factors.U)


def test_without_grams_everything_is_that_of_the_plain_decomposition() -> None:
    D, s = make(9, 14).D, np.geomspace(1, 1e-2, 9)
    assert np.abs(loss_spectrum(D, inputs=IDENTITY, outputs=IDENTITY) - s).max() <= tolerance(
        1.0, D.shape
    )
    U, _, Vh = factors = loss_factors(D, 4, inputs=IDENTITY, outputs=IDENTITY)
    assert np.linalg.norm(D - dense(factors), 2) == pytest.approx(s[4], rel=1e-4)
    assert_orthonormal(U)
    assert_orthonormal(Vh.T)


def test_the_identity_is_neither_stored_nor_multiplied() -> None:
    A = np.ones((3, 4), np.float32)
    assert IDENTITY.root is None
    assert IDENTITY.size is None
    for apply in (
        IDENTITY.times_root,
        IDENTITY.root_times,
        IDENTITY.inverse_root_times,
    ):
        assert apply(A) is A
    assert IDENTITY.feedback(32) is None


@pytest.mark.parametrize("scale", [1.0, 4.0, 2.0**-40])
def test_a_multiple_of_a_gram_scales_the_spectrum_and_not_the_product(scale: float) -> None:
    problem = make(10, 7)
    scaled = GramRoot.of(problem.outputs.gram * scale, damping=problem.outputs.damping)
    roots = Roots(inputs=problem.inputs.root, outputs=scaled)
    expected = loss_spectrum(problem.D, **problem.roots)
    assert loss_spectrum(problem.D, **roots) == pytest.approx(expected * scale**0.5, rel=1e-12)
    plain, other = (loss_factors(problem.D, 3, **r) for r in (problem.roots, roots))
    assert np.abs(dense(plain) - dense(other)).max() <= tolerance(1.0, (10, 7))


def test_the_transposed_problem_has_the_transposed_solution() -> None:
    problem = make(10, 7)
    inputs, outputs = problem.inputs.root, problem.outputs.root
    same = loss_factors(problem.D, 3, inputs=inputs, outputs=outputs)
    turned = loss_factors(problem.D.T, 3, inputs=outputs, outputs=inputs)
    limit = 10 * tolerance(1.0, (10, 7)) * np.linalg.cond(problem.inputs.square_root)
    assert np.abs(dense(same) - dense(turned).T).max() <= limit
    assert np.asarray(same.S) == pytest.approx(np.asarray(turned.S), rel=1e-5)


def test_a_rotation_of_the_inputs_changes_nothing() -> None:
    problem = make(10, 7)
    Q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((7, 7)))
    turned = GramRoot.of(Q.T @ problem.inputs.gram @ Q, damping=problem.inputs.damping)
    values = loss_spectrum(problem.D @ Q, inputs=turned, outputs=problem.outputs.root)
    assert values == pytest.approx(loss_spectrum(problem.D, **problem.roots), rel=1e-5)


def test_a_difference_is_treated_as_the_matrix_it_is() -> None:
    problem = make(10, 7)
    A, B = (np.rint(2**10 * make(10, 7, seed=seed).D) for seed in (4, 5))
    for function in (predicted_cost, loss_spectrum, partial(loss_factors, rank=3)):
        of_difference = function(difference(A, B), **problem.roots)
        of_matrix = function(A - B, **problem.roots)
        for one, other in zip(flat(of_difference), flat(of_matrix), strict=True):
            assert bits(one) == bits(other)


def test_cost_of_what_the_factors_leave_is_the_tail() -> None:
    problem = make(12, 20)
    factors = loss_factors(problem.D, 4, **problem.roots)
    left = predicted_cost(difference(problem.D, factors), **problem.roots)
    tail = np.sum(loss_spectrum(problem.D, **problem.roots)[4:] ** 2) / 2
    assert left == pytest.approx(tail, rel=1e-3)


def test_randomised_factors_miss_hardly_more_than_the_tail() -> None:
    problem = make(300, 260)
    factors = loss_factors(problem.D, 4, **problem.roots, key=1)
    assert factors.method == "randomized"
    missed = np.linalg.norm(problem.whitened(problem.D - dense(factors)))
    tail = np.linalg.norm(loss_spectrum(problem.D, **problem.roots)[4:])
    assert tail - problem.limit() <= missed <= 1.01 * tail
    again = loss_factors(problem.D, 4, **problem.roots, key=1)
    assert [bits(a) for a in factors] == [bits(a) for a in again]


def test_a_zero_matrix_costs_nothing_and_stays_zero() -> None:
    roots, D = make(5, 8).roots, np.zeros((5, 8), np.float32)
    assert predicted_cost(D, **roots) == 0.0
    assert loss_spectrum(D, **roots).tolist() == [0.0] * 5
    factors = loss_factors(D, 2, **roots)
    assert np.asarray(factors.S).tolist() == [0.0, 0.0]
    assert not dense(factors).any()


@pytest.mark.parametrize("size", [1, 3, 10])
def test_a_root_squares_to_the_damped_gram_and_its_inverse_undoes_it(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lapack, "PANEL", 3)
    gram = linalg.gram(np.random.default_rng(size).standard_normal((max(1, size // 2), size)))
    root = GramRoot.of(gram, damping=0.1)
    assert root.root is not None
    assert root.size == size
    damped = gram + 0.1 * np.trace(gram) / size * np.eye(size)
    limit = tolerance(float(np.linalg.cond(damped)), gram.shape, np.float64)
    assert np.abs(root.root @ root.root.T - damped).max() <= limit * np.abs(damped).max()
    A = np.random.default_rng(0).standard_normal((4, size))
    assert np.abs(root.inverse_root_times(root.root_times(A.T)) - A.T).max() <= limit


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_mlx_matrices_and_grams_are_read_as_they_are(dtype: mx.Dtype) -> None:
    D, gram = mx.array([[1.0, 2.0], [0.0, -1.0]]), mx.diag(mx.array([1.0, 4.0]))
    expected = GramRoot.of(np.asarray(gram), damping=0.25)
    root = GramRoot.of(gram.astype(dtype), damping=0.25)
    values = loss_spectrum(D.astype(dtype), inputs=root, outputs=root)
    assert (
        values.tobytes()
        == loss_spectrum(np.asarray(D), inputs=expected, outputs=expected).tobytes()
    )


@pytest.mark.parametrize("function", [predicted_cost, loss_spectrum])
def test_roots_that_do_not_fit_are_refused_and_named(function: Callable[..., Any]) -> None:
    D, three = np.ones((2, 3), np.float32), GramRoot.of(np.eye(3), damping=0.0)
    with pytest.raises(ValueError, match=r"`outputs` must be of size 2, the number of rows of `D`"):
        function(D, inputs=three, outputs=three)
    with pytest.raises(ValueError, match=r"`inputs` must be of size 2, .* columns of `D`, got 3"):
        function(D.T, inputs=three, outputs=three)


def test_a_matrix_or_rank_out_of_range_is_refused() -> None:
    roots = make(3, 5).roots
    with pytest.raises(ValueError, match=r"`D` must be finite"):
        loss_spectrum(np.full((3, 5), np.nan), **roots)
    with pytest.raises(TypeError, match=r"`D` must hold floating-point numbers"):
        predicted_cost(np.ones((3, 5), int), **roots)
    for rank in (0, 4):
        with pytest.raises(ValueError, match=rf"`rank` .* min\(m, n\) = 3 .* got {rank}\."):
            loss_factors(np.ones((3, 5)), rank, **roots)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (np.ones((2, 3)), r"`gram` must be a square matrix, or blocks of one, got .* \(2, 3\)"),
        (np.ones(3), r"`gram` must be a square matrix"),
        (np.diag([1.0, np.nan]), r"`gram` must be finite .* the first at \(1, 1\)"),
        (np.zeros((2, 2)), r"`gram` must have a positive trace, got 0: nothing was measured"),
        (np.diag([2.0, -1.0]), r"`gram` must be positive definite .* increase `damping`"),
    ],
)
def test_a_gram_that_is_none_is_refused(gram: Float64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GramRoot.of(gram, damping=1e-2).times_root(np.eye(2))
    with pytest.raises(ValueError, match=message):
        GramRoot.of(gram, damping=1e-2).feedback()


def test_a_gram_of_whole_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match="`gram` must hold floating-point numbers, got int64"):
        GramRoot.of(np.eye(2, dtype=np.int64), damping=1e-2)


@pytest.mark.parametrize("damping", [-1e-3, np.nan, np.inf])
def test_a_damping_out_of_range_is_refused(damping: float) -> None:
    with pytest.raises(ValueError, match="`damping` must be finite and not negative"):
        GramRoot.of(np.eye(2), damping=damping)


def test_a_singular_gram_needs_damping() -> None:
    gram = np.diag([1.0, 0.0])
    with pytest.raises(ValueError, match="increase `damping`"):
        GramRoot.of(gram, damping=0.0).times_root(np.eye(2))
    assert np.isfinite(GramRoot.of(gram, damping=1e-3).times_root(np.eye(2))).all()


def test_a_gram_is_factored_once_however_often_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, cholesky = list[int](), np.linalg.cholesky

    def counted(A: Float64) -> Float64:
        calls.append(len(A))
        return cholesky(A)

    monkeypatch.setattr(np.linalg, "cholesky", counted)
    X, W = np.random.default_rng(0).standard_normal((2, 96, 64)).astype(np.float32)
    R, C = GramRoot.of(linalg.gram(X), damping=1e-2), GramRoot.of(linalg.gram(X.T), damping=1e-2)
    for width in (2, 3, 4, 8):
        E = difference(W, error_feedback(W, width, inputs=R, outputs=C, sweeps=0))
        predicted_cost(E, inputs=R, outputs=C)
        priced_corrections(E, {4: 2, 8: 3}, inputs=R, outputs=C)
    # Each Gram for prices, for rounding the weight, and for rounding factors.
    assert sorted(calls) == [64, 64, 96, 96, 96]


def in_blocks(n: int, side: int, *, seed: int = 0) -> tuple[Float64, Float64]:
    """A block-diagonal Gram: its blocks, and the whole matrix."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n // side, 2 * side, side)) * rng.uniform(0.1, 2.0, (n // side, 1, 1))
    blocks = np.einsum("kti,ktj->kij", X, X)
    whole = np.zeros((n, n))
    for i, block in enumerate(blocks):
        part = slice(i * side, (i + 1) * side)
        whole[part, part] = block
    return blocks, whole


@pytest.mark.parametrize(("m", "n"), [(1, 4), (3, 1), (6, 2), (1, 1)])
def test_blocks_of_grams_are_the_matrices_that_they_are_the_blocks_of(m: int, n: int) -> None:
    (C, C_whole), (R, R_whole) = in_blocks(12, m), in_blocks(20, n, seed=1)
    D = np.random.default_rng(2).standard_normal((12, 20)).astype(np.float32)
    blocks = {"inputs": GramRoot.of(R, damping=0.01), "outputs": GramRoot.of(C, damping=0.01)}
    whole = {
        "inputs": GramRoot.of(R_whole, damping=0.01),
        "outputs": GramRoot.of(C_whole, damping=0.01),
    }
    assert (blocks["inputs"].size, blocks["outputs"].size) == (20, 12)
    cost = predicted_cost(D, **whole)
    assert predicted_cost(D, **blocks) == pytest.approx(cost, rel=1e-12)
    found, wanted = (dense(loss_factors(D, 4, **roots)) for roots in (blocks, whole))
    assert np.abs(found - wanted).max() <= tolerance(wanted, D.shape) / 0.01
    for own, other in zip(blocks.values(), whole.values(), strict=True):
        A = np.random.default_rng(3).standard_normal((3, own.size or 0))
        np.testing.assert_allclose(own.times_root(A), other.times_root(A), atol=1e-10)
        np.testing.assert_allclose(
            own.inverse_root_times(A.T), other.inverse_root_times(A.T), atol=1e-10
        )


@pytest.mark.parametrize(
    ("n", "side"),
    [(28672, 1024), (11008, 256), (50257, 1), (32000, 640), (128256, 768), (96, 96), (97, 1)],
)
def test_blocks_divide_a_side_and_hold_whole_groups(n: int, side: int) -> None:
    assert block_side(n) == side


@pytest.mark.parametrize("size", [1, 32, 64, 128])
def test_the_strongest_group_comes_first_and_in_it_the_strongest_entry(size: int) -> None:
    n = 384
    X = np.random.default_rng(0).standard_normal((n, n)) * np.geomspace(1, 9, n)[::-1]
    gram = linalg.gram(X)
    power = np.diagonal(gram)
    (R,) = GramRoot.of(gram, damping=0.1).feedback(size) or ()
    groups = R.places.reshape(-1, size)
    assert (np.sort(groups, axis=1) == groups.min(axis=1)[:, None] + np.arange(size)).all()
    assert (np.diff(power[groups].sum(axis=1)) <= 0).all()
    assert (np.diff(power[groups], axis=1) <= 0).all()
    whole = (np.eye(n) + R.F.astype(np.float64)) * R.pivots @ (np.eye(n) + R.F).T
    assert np.abs(whole - R.gram).max() <= 100 * EPS * R.gram.max()


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_shrunk_gram_is_that_with_less_off_its_diagonal(blocks: int) -> None:
    X = np.random.default_rng(5).standard_normal((blocks, 40, 32))
    G = X.swapaxes(1, 2) @ X / 40
    shrunk = 0.9 * G + 0.1 * G * np.eye(32)
    G, shrunk = (A[0] if blocks == 1 else A for A in (G, shrunk))
    root = GramRoot.of(G, damping=1e-2, shrinkage=0.1)
    wanted = GramRoot.of(shrunk, damping=1e-2)
    np.testing.assert_allclose(root.root, wanted.root, atol=1e-12)
    np.testing.assert_allclose(pivots_of(root, 32), pivots_of(wanted, 32), rtol=1e-12)
    for ours, theirs in zip(root.feedback(32) or (), wanted.feedback(32) or (), strict=True):
        np.testing.assert_allclose(ours.F, theirs.F, atol=1e-6)
        np.testing.assert_allclose(ours.gram, theirs.gram, atol=1e-6)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, math.nan])
def test_a_shrinkage_is_a_fraction(shrinkage: float) -> None:
    with pytest.raises(ValueError, match="`shrinkage` must be from 0 to 1"):
        GramRoot.of(np.eye(2), damping=0.0, shrinkage=shrinkage)
