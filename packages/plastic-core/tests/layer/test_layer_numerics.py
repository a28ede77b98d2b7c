"""Every hard input has one stated outcome, in the engine and in the layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numpy.typing import NDArray
from plastic_core import (
    RankLayer,
    certify,
    factorized_lowrank,
    output_basis,
    quantize_factors,
    svd_lowrank,
)
from plastic_core.layer import linear_from
from plastic_core.loss.weighted import weighted_spectrum
from plastic_core.testing import bits, matrix_from_spectrum

Array = NDArray[Any]


class Case(NamedTuple):
    """An input and what must become of it.

    Attributes:
        A: The matrix.
        refused: What the error says; None where the result must be right.
        error: Frobenius error of rank 2 over the norm; None for whatever is least.
    """

    A: Any
    refused: str | None = None
    error: float | None = None


def gaussian(m: int = 40, n: int = 30) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((m, n)).astype(np.float32)


def spoiled(value: float, *place: int, A: Array | None = None) -> Array:
    A = gaussian() if A is None else A.copy()
    A[place] = value
    return A


NOT_FINITE = r"`\w+` must be finite in float32, but {} of its {} entries are not, the first at \({}"

CASES = {
    "one NaN": Case(spoiled(np.nan, 3, 4), NOT_FINITE.format(1, 1200, "3, 4")),
    "all NaN": Case(np.full((40, 30), np.nan), NOT_FINITE.format(1200, 1200, "0, 0")),
    "one Inf": Case(spoiled(np.inf, 3, 4), NOT_FINITE.format(1, 1200, "3, 4")),
    "last -Inf": Case(spoiled(-np.inf, -1, -1), NOT_FINITE.format(1, 1200, "39, 29")),
    "Inf in 3 x 3": Case(spoiled(np.inf, 0, 0, A=gaussian(3, 3)), NOT_FINITE.format(1, 9, "0, 0")),
    "NaN in float16": Case(
        spoiled(np.nan, 3, 4).astype(np.float16), NOT_FINITE.format(1, 1200, "3, 4")
    ),
    "float64 beyond float32": Case(
        spoiled(1e300, 3, 4, A=gaussian().astype(np.float64)), NOT_FINITE.format(1, 1200, "3, 4")
    ),
    "zero": Case(np.zeros((40, 30), np.float32), error=0.0),
    "rank 2": Case(gaussian(40, 2) @ gaussian(2, 30), error=0.0),
    "identity": Case(np.eye(30, dtype=np.float32), error=np.sqrt(28 / 30)),
    "Hilbert": Case(
        (1 / (np.arange(12)[:, None] + np.arange(12) + 1)).astype(np.float32), error=None
    ),
    "subnormal": Case(gaussian() * np.float32(1e-40)),
    "1e-30": Case(gaussian() * np.float32(1e-30)),
    "1e30": Case(gaussian() * np.float32(1e30)),
    "graded": Case(np.diag(np.array([1e30, 1, 1e-30], np.float32)), error=0.0),
    "3e38": Case(np.full((4, 4), 3e38, np.float32), r"overflows float32\. Scale the matrix down"),
    "1 x n": Case(gaussian(1, 30), error=0.0),
    "n x 1": Case(gaussian(40, 1), error=0.0),
    "1 x 1": Case(gaussian(1, 1), error=0.0),
    "0 x n": Case(gaussian(0, 30), "has no entries|must be between 0 and"),
    "n x 0": Case(gaussian(40, 0), "has no entries|must be between 0 and"),
    "0-d": Case(np.float32(3), "must be a matrix|must be between 0 and"),
    "1-d": Case(gaussian()[0], "must be a matrix"),
    "3-d": Case(gaussian().reshape(4, 10, 30), "must be a matrix"),
    "float16": Case(gaussian().astype(np.float16)),
    "float64": Case(gaussian().astype(np.float64)),
    "transposed": Case(gaussian().T),
    "strided": Case(gaussian(80, 60)[::2, ::2]),
    "int32": Case(np.ones((4, 3), np.int32), "must hold floating-point numbers, got int32"),
    "bool": Case(np.ones((4, 3), bool), "must hold floating-point numbers, got bool"),
    "packed uint32": Case(np.ones((4, 3), np.uint32), "must hold floating-point numbers, got uint"),
    "complex": Case(gaussian().astype(np.complex64), "must hold floating-point numbers, got compl"),
}


def linear(A: Any) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = mx.array(A)
    return layer


def rank_of(A: Any) -> int:
    return max(1, min([2, *np.shape(A)]))


def product(U: mx.array, S: mx.array, Vh: mx.array) -> Array:
    u, s, v = (np.array(a.astype(mx.float32), np.float64) for a in (U, S, Vh))
    result: Array = (u * s) @ v
    return result


ENGINES: dict[str, Callable[[Any], Array]] = {
    "factorized_lowrank": lambda A: product(*factorized_lowrank(A, rank_of(A))),
    "svd_lowrank": lambda A: np.array(svd_lowrank(A, rank_of(A)).astype(mx.float32), np.float64),
    "from_linear": lambda A: product(*RankLayer.from_linear(linear(A), rank_of(A)).factors()),
}


def least_error(A: Array) -> float:
    """Relative Frobenius error of the best approximation of rank 2, in float64."""
    s = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    return float(np.linalg.norm(s[2:]) / np.linalg.norm(s))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_factorisation_is_right_or_refused(engine: str, name: str) -> None:
    A, refused, error = CASES[name]
    if refused is not None:
        with pytest.raises((ValueError, TypeError), match=refused):
            ENGINES[engine](A)
        return
    result = ENGINES[engine](A)
    exact = np.asarray(A, np.float64)
    norm = np.linalg.norm(exact)
    found = np.linalg.norm(result - exact) / norm if norm else np.linalg.norm(result)
    wanted = least_error(exact) if error is None else error
    eps = 2.0**-11 if exact.size and np.asarray(A).dtype == np.float16 else 1e-5
    eps = 1e-4 if name == "subnormal" else eps  # of which only 20 bits are left
    assert abs(found - wanted) <= eps


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.refused])
def test_nothing_else_takes_what_is_refused(name: str) -> None:
    A = CASES[name].A
    if np.size(A) == 0 or name == "3e38":
        return  # bases and spectra of nothing are nothing; a norm beyond float32 has a basis
    for function in (output_basis, weighted_spectrum):
        with pytest.raises((ValueError, TypeError)):
            function(A)
    with pytest.raises((ValueError, TypeError)):
        certify(A, np.ones((40, 1), np.float32), np.ones((1, 30), np.float32))
    with pytest.raises((ValueError, TypeError)):
        quantize_factors(A, np.ones(30, np.float32), np.ones((30, 30), np.float32))


def test_a_spectrum_beyond_the_dtype_of_a_layer_is_refused() -> None:
    A = mx.full((40, 30), 65504.0, dtype=mx.float16)
    assert svd_lowrank(A, 1)[0, 0].item() == 65504.0
    with pytest.raises(ValueError, match=r"`S` reaches 2\.27e\+06, which overflows .*float16"):
        RankLayer.from_linear(linear(A), 1)
    layer = RankLayer.from_linear(linear(A.astype(mx.bfloat16)), 1)
    assert layer.S.item() == pytest.approx(65504 * 1200**0.5, rel=2.0**-8)


# The layer.


def layer_with(value: float, name: str) -> RankLayer:
    """A layer of rank 3 and norm 1, one number of one factor replaced."""
    W = matrix_from_spectrum(np.array([1.0, 0.5, 0.25]), 8, 8, seed=0)
    layer = RankLayer.from_linear(linear_from(mx.array(W, mx.float32), None), 3)
    factors = {n: np.array(a) for n, a in layer.factors()._asdict().items()}
    factors[name].flat[0] = value
    layer.set_factors(*(mx.array(factors[n]) for n in ("U", "S", "Vh")))
    return layer


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["U", "S", "Vh"])
def test_a_layer_that_is_not_finite_is_neither_balanced_nor_grown_and_stays(
    value: float, name: str
) -> None:
    layer = layer_with(value, name)
    before = [bits(a) for a in layer.factors()]
    key = mx.random.key(0)
    for change in (layer.balanced, lambda: layer.grow(1, key=key)):
        with pytest.raises(ValueError, match=f"`{name}` must be finite"):
            change()
    assert [bits(a) for a in layer.factors()] == before
    parked = layer.park([0])  # moving it is no arithmetic
    layer.wake(parked)
    assert layer.rank == 3


@pytest.mark.parametrize("value", [3e38, 1e-40, 0.0])
@pytest.mark.parametrize("name", ["U", "S", "Vh"])
def test_a_layer_of_any_finite_size_is_balanced(value: float, name: str) -> None:
    layer = layer_with(value, name)
    dense = product(*layer.factors())
    balanced = layer.balanced()
    error = np.linalg.norm(product(*balanced) - dense) / np.linalg.norm(dense)
    assert error < 1e-6


def test_a_spectrum_beyond_float32_is_refused() -> None:
    huge = mx.full((8, 3), 1e30), mx.full((3,), 1e30), mx.full((3, 8), 1e30)
    with pytest.raises(ValueError, match="overflows float32"):
        RankLayer(*huge).balanced()
