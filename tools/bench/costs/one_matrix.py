"""The price of one matrix, and its rounding.

A random matrix under synthetic Grams, low rank and a diagonal. Both are made before the clock
starts, and so is a small matrix of the same kind priced and rounded, so that compiled kernels are
there.
"""

from __future__ import annotations

import numpy as np
from kept.measurements import Figures
from meters import peak, resident, spent
from numpy.typing import NDArray
from plastic_core import block_side, difference, predicted_cost
from plastic_core.linalg import Float64
from plastic_core.rounding import expected_error
from plastic_export import Candidate, Choices, Offer
from plastic_export.format import FORMATS
from plastic_export.plan import corrected_offers, expected_offers, gram_roots, rounded
from plastic_runtime import Gram, LossGrams
from plastic_runtime.measure import LONGEST_DENSE_SIDE, is_dense

from costs.shapes import matrix

SMALL, GROUP = (64, 128), 64
Problem = tuple[NDArray[np.float32], Candidate, LossGrams]
RANK = 256  # of a synthetic Gram, beside its diagonal


def priced(rows: int, columns: int, format: str) -> Figures:
    """All ways of storing one matrix that a format offers, at every group size."""
    choices = FORMATS[format].choices or Choices()

    def price_of(weight: NDArray[np.float32], m: Candidate, grams: LossGrams) -> list[Offer]:
        own = weight, m, (grams,), choices
        return expected_offers(*own) + corrected_offers(*own)

    price_of(*problem(SMALL))
    weight, m, grams = problem((rows, columns))
    before = resident()
    seconds, found = spent(lambda: price_of(weight, m, grams))
    return {**seconds._asdict(), "offers": len(found), "added": peak() - before}


def fully_rounded(rows: int, columns: int, bits: int) -> Figures:
    """One matrix as it is written: factors of both Grams, error feedback both ways, descents."""
    small, m, grams = problem(SMALL)
    rounded(small, bits, gram_roots(grams), m, group_size=GROUP)
    weight, m, grams = problem((rows, columns))
    before = resident()
    seconds, _ = spent(lambda: rounded(weight, bits, gram_roots(grams), m, group_size=GROUP))
    return {**seconds._asdict(), "added": peak() - before}


def sampled(rows: int, columns: int, bits: list[int]) -> Figures:
    """One matrix rounded in full at some widths, to correct prices by: factored once."""
    run_sample(problem(SMALL), bits)
    whole = problem((rows, columns))
    seconds, _ = spent(lambda: run_sample(whole, bits))
    return {**seconds._asdict()}


def foreseen(rows: int, columns: int, bits: int) -> Figures:
    """About what rounding one matrix leaves, as a plan is tried with it."""
    error_of(problem(SMALL), bits)
    whole = problem((rows, columns))
    seconds, _ = spent(lambda: error_of(whole, bits))
    return {**seconds._asdict()}


def error_of(problem: Problem, bits: int) -> NDArray[np.float32]:
    """The expected error of a matrix."""
    weight, _, grams = problem
    R, C = gram_roots(grams)
    return expected_error(weight, bits, inputs=R, outputs=C, group_size=GROUP)


def run_sample(problem: Problem, bits: list[int]) -> list[float]:
    """What the rounding to every width is predicted to cost, and what was expected of it."""
    weight, m, grams = problem
    R, C = roots = gram_roots(grams)
    costs = list[float]()
    for b in bits:
        left = difference(weight, rounded(weight, b, roots, m, group_size=GROUP))
        expected = expected_error(weight, b, inputs=R, outputs=C, group_size=GROUP)
        costs.append(predicted_cost(left, inputs=R, outputs=C))
        costs.append(predicted_cost(expected, inputs=R, outputs=C))
    return costs


def problem(shape: tuple[int, int]) -> Problem:
    """Return a random matrix and its Grams."""
    (out, in_), rng = shape, np.random.default_rng(0)
    weight = rng.standard_normal(shape, dtype=np.float32) / np.float32(in_**0.5)
    return weight, matrix("m", shape), LossGrams(random_gram(in_, 1), random_gram(out, 2))


def random_gram(side: int, seed: int) -> Gram:
    """Low rank and a diagonal; blocks of it where it is too wide."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((side, RANK)) * np.arange(1.0, RANK + 1) ** -0.5
    power = rng.uniform(0.1, 2.0, side)
    if is_dense(side, LONGEST_DENSE_SIDE):
        A: Float64 = X @ X.T
        A[np.diag_indices(side)] += power
        return Gram(A, side)
    b = block_side(side)
    parts = X.reshape(-1, b, RANK)
    return Gram(parts @ parts.swapaxes(1, 2) + power.reshape(-1, b, 1) * np.eye(b), side)
