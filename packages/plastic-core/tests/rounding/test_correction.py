"""What a correction costs is known for every rank, from the numbers that are stored."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import (
    Backbone,
    Correction,
    Factors,
    GramRoot,
    correction_costs,
    difference,
    linalg,
    loss_factors,
    loss_spectrum,
    predicted_cost,
    priced_corrections,
    round_to_nearest,
)
from plastic_core.linalg import Float32, Float64
from plastic_core.testing import EPS, matrix_from_spectrum, repeatable

DAMPING = 1e-2


class Problem:
    """A matrix, the Grams on its two sides, and their roots."""

    def __init__(self, m: int, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        s = np.geomspace(1, 1e-2, min(m, n))
        self.D: Float32 = matrix_from_spectrum(s, m, n, seed).astype(np.float32)
        self.R, self.C = (
            linalg.gram(rng.standard_normal((2 * k, k)) * np.geomspace(1, 0.1, k)) for k in (n, m)
        )
        self.roots: dict[str, Any] = {
            "inputs": GramRoot.of(self.R, damping=DAMPING),
            "outputs": GramRoot.of(self.C, damping=DAMPING),
        }

    def factors(self, rank: int) -> Factors:
        return loss_factors(self.D, rank, **self.roots)

    def rounded(self, factors: Factors, bits: int) -> Correction:
        return Correction.rounded(factors, bits, **self.roots, dtype=mx.float32)

    def cost(self, part: Correction) -> float:
        return predicted_cost(difference(self.D, part.operator()), **self.roots)


def product(factors: Factors) -> Float64:
    U, S, Vh = (np.asarray(f, np.float64) for f in factors)
    dense: Float64 = (U * S) @ Vh
    return dense


@repeatable
@given(
    st.sampled_from([(32, 64), (64, 32), (96, 128)]),
    st.integers(1, 12),
    st.sampled_from([2, 3, 4, 8, 16]),
    st.integers(0, 9),
)
def test_the_cost_of_every_rank_is_that_of_what_it_leaves(
    shape: tuple[int, int], rank: int, bits: int, seed: int
) -> None:
    problem = Problem(*shape, seed=seed)
    part = problem.rounded(problem.factors(rank), bits)
    costs = correction_costs(problem.D, part, **problem.roots)
    assert costs.shape == (rank + 1,)
    rounding = 100 * EPS * costs[0]
    assert abs(costs[0] - predicted_cost(problem.D, **problem.roots)) <= rounding
    for k in range(1, rank + 1):
        assert abs(costs[k] - problem.cost(part.leading(k))) <= rounding


@repeatable
@given(st.integers(1, 20), st.integers(0, 9))
def test_unrounded_corrections_cost_what_the_spectrum_leaves(rank: int, seed: int) -> None:
    problem = Problem(64, 96, seed=seed)
    costs = correction_costs(problem.D, problem.rounded(problem.factors(rank), 16), **problem.roots)
    s = loss_spectrum(problem.D, **problem.roots)
    tails = [np.sum(s[k:] ** 2) / 2 for k in range(rank + 1)]
    # The factors miss the best of their rank by less than one percent of what they leave.
    assert np.all(costs >= np.array(tails) - 100 * EPS * costs[0])
    assert np.all(costs <= 1.02 * np.array(tails) + 100 * EPS * costs[0])


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_prices_are_those_of_what_would_be_stored(shape: tuple[int, int]) -> None:
    problem = Problem(*shape)
    priced = priced_corrections(problem.D, {4: 12, 8: 5, 16: 7}, **problem.roots, dtype=mx.float32)
    assert {bits: len(costs) for bits, costs in priced.items()} == {4: 13, 8: 6, 16: 8}
    factors = problem.factors(12)
    for bits, costs in priced.items():
        part = problem.rounded(factors.leading(len(costs) - 1), bits)
        alone = correction_costs(problem.D, part, **problem.roots)
        assert costs.tolist() == alone.tolist()
    assert priced_corrections(problem.D, {}, **problem.roots) == {}


def test_nothing_to_correct_costs_nothing_and_a_correction_of_it_its_own_energy() -> None:
    problem = Problem(64, 32)
    zero = np.zeros_like(problem.D)
    for costs in priced_corrections(zero, {8: 4, 16: 4}, **problem.roots).values():
        assert costs.tolist() == [0.0] * 5
    part = problem.rounded(problem.factors(3), 16)
    costs = correction_costs(zero, part, **problem.roots)
    own = predicted_cost(part.operator(), **problem.roots)
    assert costs[0] == 0.0
    assert costs[-1] == pytest.approx(own, rel=1e-6)


def test_more_bits_cost_less_down_to_the_unrounded_factors() -> None:
    problem = Problem(128, 192)
    factors = problem.factors(16)
    costs = [problem.cost(problem.rounded(factors, bits)) for bits in (2, 3, 4, 6, 8, 16)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-2] <= 1.001 * costs[-1]


def test_rounding_under_the_grams_beats_plain_rounding() -> None:
    problem = Problem(128, 192)
    factors = problem.factors(16)
    U, S, Vh = (np.asarray(f) for f in factors)
    plain = Correction(
        round_to_nearest((U * np.sqrt(S)).T, 4, group_size=128, dtype=mx.float32),
        round_to_nearest(np.sqrt(S)[:, None] * Vh, 4, group_size=64, dtype=mx.float32),
    )
    assert problem.cost(problem.rounded(factors, 4)) < problem.cost(plain)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8, 16])
def test_bytes_are_those_of_the_arrays_and_grow_by_the_rank(bits: int) -> None:
    problem = Problem(64, 96)
    part = problem.rounded(problem.factors(6), bits)
    arrays = [
        array
        for factor in (part.Ut, part.V)
        for array in (factor.arrays().values() if isinstance(factor, Backbone) else [factor])
    ]
    assert part.nbytes == sum(np.asarray(array).nbytes for array in arrays)
    assert part.rank == 6
    for k in range(1, 7):
        assert part.leading(k).rank == k
        assert 6 * part.leading(k).nbytes == k * part.nbytes


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_multiplies_what_is_stored_without_padding_the_rank(bits: int) -> None:
    problem = Problem(64, 96)
    part = problem.rounded(problem.factors(5), bits)
    assert isinstance(part.V, Backbone)
    assert isinstance(part.Ut, Backbone)
    x = np.random.default_rng(1).standard_normal((7, 96)).astype(np.float32)
    inner = mx.quantized_matmul(
        mx.array(x),
        *part.V.arrays().values(),
        transpose=True,
        group_size=part.V.group_size,
        bits=bits,
        stream=mx.cpu,
    )
    y = mx.quantized_matmul(
        inner,
        *part.Ut.arrays().values(),
        transpose=False,
        group_size=part.Ut.group_size,
        bits=bits,
        stream=mx.cpu,
    )
    dense = part.operator()
    expected = x.astype(np.float64) @ (dense.U.astype(np.float64) @ dense.Vh).T
    assert np.linalg.norm(np.asarray(y) - expected) <= 100 * EPS * np.linalg.norm(expected)


def test_sixteen_bits_are_the_factors_in_their_type() -> None:
    problem = Problem(40, 50)  # no side can be packed
    factors = problem.factors(8)
    part = problem.rounded(factors, 16)
    assert isinstance(part.V, mx.array)
    assert part.V.dtype == mx.float32
    error = np.linalg.norm(part.operator().rows(slice(None), np.float64) - product(factors))
    assert error <= 10 * EPS * np.linalg.norm(product(factors))


def test_what_cannot_be_packed_names_the_side_and_the_remedy() -> None:
    problem = Problem(40, 64)
    with pytest.raises(ValueError, match=r"multiples of 32 for 4 bits, got a side of 40\. .* 16"):
        problem.rounded(problem.factors(2), 4)


def test_bits_that_are_not_offered_and_grams_that_do_not_fit_are_refused() -> None:
    problem = Problem(64, 96)
    factors = problem.factors(2)
    with pytest.raises(ValueError, match=r"`bits` must be one of .* got 7"):
        problem.rounded(factors, 7)
    outputs = problem.roots["outputs"]
    with pytest.raises(ValueError, match=r"`inputs` must be of size 96, .* columns of `factors`"):
        Correction.rounded(factors, 4, inputs=outputs, outputs=outputs)
