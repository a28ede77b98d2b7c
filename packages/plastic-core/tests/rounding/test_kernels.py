"""The compiled loops against the same loops in plain NumPy."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from plastic_core import linalg
from plastic_core.factors.quantize import BITS, GROUP_SIZES
from plastic_core.linalg import Float32
from plastic_core.loss.feedback import Feedback, feedback_of
from plastic_core.rounding import kernels, two_sided
from plastic_core.rounding.levels import nearest_errors
from plastic_core.rounding.one_sided import round_one_sided
from plastic_core.rounding.rounded import DROPPED, Grid, Rounded
from plastic_core.rounding.two_sided import round_two_sided
from plastic_core.testing import repeatable

DTYPES = (mx.bfloat16, mx.float16, mx.float32)
EDGES = np.float32(
    [
        *(0, -0.0, 1, 65504, 65519.99, 65520, -65520, 2**-14, 2**-24, 2**-25, 1.5 * 2**-25),
        *(2.0**-126, 2.0**-149, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 3.4028e38),
    ]
)


def stored(x: Float32, dtype: mx.Dtype) -> Float32:
    """As MLX casts it."""
    cast = mx.array(x.astype(np.float32)).astype(dtype, stream=mx.cpu)
    return np.asarray(cast.astype(mx.float32, stream=mx.cpu))


class Levels(NamedTuple):
    """The levels of one group of every output, shape ``(m,)``."""

    step: Float32
    start: Float32
    grid: Grid

    def codes(self, T: Float32) -> Float32:
        """The codes nearest to ``T (m, ...)``."""
        step = np.where(self.step > 0, self.step, np.float32(1))
        codes: Float32 = np.rint((T.T - self.start) / step).T
        return np.clip(codes, 0, self.grid.top)

    def values(self, codes: Float32) -> Float32:
        """What codes stand for."""
        return (self.step * codes.T + self.start).T

    def where(self, wanted: np.ndarray, other: "Levels") -> "Levels":
        """These where ``wanted (m,)``, else the others."""
        step = np.where(wanted, self.step, other.step)
        return Levels(step, np.where(wanted, self.start, other.start), self.grid)

    def of(self, outputs: slice) -> "Levels":
        """Those of some outputs."""
        return Levels(self.step[outputs], self.start[outputs], self.grid)


def rounded_levels(step: Float32, start: Float32, grid: Grid) -> Levels:
    return Levels(stored(step, grid.dtype), stored(start, grid.dtype), grid)


def fitted(T: Float32, w: Float32, grid: Grid) -> Levels:
    """Lloyd's method for every row of ``T (m, g)``."""
    least = T.min(axis=1)
    best = rounded_levels((T.max(axis=1) - least) / grid.top, least, grid)
    codes = best.codes(T)
    error = ((T - best.values(codes)) ** 2) @ w
    mean = T @ w
    for _ in range(kernels.FITTING_ROUNDS):
        centre = codes @ w
        offsets = codes - centre[:, None]
        variance, covariance = offsets**2 @ w, (offsets * (T - mean[:, None])) @ w
        step = np.divide(covariance, variance, out=best.step.copy(), where=variance > 1e-6)
        found = rounded_levels(step, mean - step * centre, grid)
        codes = found.codes(T)
        new = ((T - found.values(codes)) ** 2) @ w
        best, error = found.where(new < error, best), np.minimum(new, error)
    return best


def feedback(result: Rounded, R: Feedback, C: Feedback | None) -> None:
    """``round_with_feedback`` and ``round_both_ways``, an entry at a time."""
    W, E, F, m = result.W, result.E, R.F, len(result.W)
    K = np.zeros((m, m), np.float32) if C is None else C.F
    E[:] = 0
    for first in range(0, m, kernels.FITTED_OUTPUTS):
        outputs = slice(first, min(first + kernels.FITTED_OUTPUTS, m))
        for index, inputs in result.groups():
            KE = K[:, outputs].T @ E[:, inputs]  # (t, g), of the tiles before
            left = slice(0, inputs.start)
            IKE = E[outputs, left] + K[:, outputs].T @ E[:, left]
            levels = fitted(
                W[outputs, inputs] + KE + IKE @ F[left, inputs], R.weights(inputs), result.grid
            )
            result.levels[:, outputs, index] = levels.step, levels.start
            for i in range(outputs.start, outputs.stop):
                above = K[:i, i] @ E[:i, : inputs.stop]  # (stop,)
                for j in range(inputs.start, inputs.stop):
                    passed_on = E[i, :j] + above[:j]
                    target = W[i, j] + above[j] + passed_on @ F[:j, j]
                    one = levels.of(slice(i - first, i - first + 1))
                    code = one.codes(np.float32([target]))
                    result.codes[i, j] = code[0]
                    E[i, j] = W[i, j] - one.values(code)[0]


def sweep(result: Rounded, R: Float32, C: Float32, tile: int) -> None:
    """``descend`` and ``descend_both_ways``, an entry at a time."""
    W, E, grid = result.W, result.E, result.grid
    for first in range(0, len(W), tile):
        for index, inputs in result.groups():
            R_group = R[inputs, inputs]
            for i in range(first, min(first + tile, len(W))):
                slope = (C[i] @ E) @ R[:, inputs] / C[i, i]
                codes = result.codes[i, inputs].astype(np.float32)
                old = Levels(*result.levels[:, i : i + 1, index], grid)
                levels = moved(old, codes, slope, R_group)
                E[i, inputs] = W[i, inputs] - levels.values(codes[None])[0]
                for j in range(len(codes)):
                    slope = (C[i] @ E) @ R[:, inputs] / C[i, i]
                    value = levels.values(codes[None, j : j + 1])
                    codes[j] = levels.codes(value + slope[j] / R_group[j, j])[0, 0]
                    E[i, inputs.start + j] = (
                        W[i, inputs.start + j] - levels.values(codes[None, j : j + 1])[0, 0]
                    )
                result.codes[i, inputs] = codes
                result.levels[:, i, index] = levels.step[0], levels.start[0]


def moved(old: Levels, codes: Float32, slope: Float32, R: Float32) -> Levels:
    """The levels that are best for the codes of one output."""
    image = R @ codes
    a, b, c = codes @ image, image.sum(), R.sum()
    p, q = codes @ slope, slope.sum()
    determinant = a * c - b * b
    if not determinant > 1e-5 * a * c:
        return old
    step, start = (
        old.step + (c * p - b * q) / determinant,
        old.start + (a * q - b * p) / determinant,
    )
    new = rounded_levels(np.maximum(step, 0), start, old.grid)
    x, y = new.step - old.step, new.start - old.start
    gain = 2 * (x * p + y * q) - (a * x * x + 2 * b * x * y + c * y * y)
    return new.where(gain > 0, old)


def correlated(n: int, seed: int) -> Feedback:
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((4 * n, n)) * np.geomspace(1, 0.03, n)) @ rng.standard_normal((n, n))
    G = linalg.gram(X)
    G += 0.05 * np.trace(G) / n * np.eye(n)
    return feedback_of(G * n / np.trace(G))


def weight(m: int, n: int, seed: int = 0) -> Float32:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, n), np.float32) / np.float32(n) ** 0.5


def cost(found: Rounded, R: Feedback, C: Feedback | None) -> float:
    E = found.E.astype(np.float64)
    CE = E if C is None else C.gram.astype(np.float64) @ E
    return float(np.sum((CE @ R.gram) * E))


@pytest.mark.parametrize(
    ("bits", "group_size", "dtype"),
    [
        (2, 32, mx.bfloat16),
        (3, 64, mx.float16),
        (4, 128, mx.bfloat16),
        (5, 64, mx.float32),
        (6, 32, mx.float16),
        (8, 64, mx.bfloat16),
    ],
)
@pytest.mark.parametrize("m", [5, 66])
def test_codes_and_cost_are_those_of_plain_loops(
    bits: int, group_size: int, dtype: mx.Dtype, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_sided, "TILE", 64)
    monkeypatch.setattr(two_sided, "SPAN", 128)
    n, grid = 256, Grid(bits, group_size, dtype)
    R, C = correlated(n, 1), None if m == 5 else correlated(m, 2)
    expected = Rounded.empty(weight(m, n), grid)
    feedback(expected, R, C)
    sweep(expected, R.gram, np.eye(m, dtype=np.float32) if C is None else C.gram, 64)
    if C is None:
        found = round_one_sided(expected.W, R, grid, 1)
    else:
        found = round_two_sided(expected.W, R, C, grid, 1)
    # A sum in another order may move an entry that lies half way between two levels.
    assert np.mean(found.codes == expected.codes) >= 0.999
    assert cost(found, R, C) == pytest.approx(cost(expected, R, C), rel=1e-5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_errors_of_plain_rounding_are_those_of_plain_loops(bits: int, group_size: int) -> None:
    W, w = weight(9, 256), np.random.default_rng(1).uniform(0.1, 1, 256).astype(np.float32)
    found = nearest_errors(W, bits, weights=w, group_size=group_size)
    expected = np.empty_like(W)
    for first in range(0, 256, group_size):
        inputs = slice(first, first + group_size)
        grid = Grid(bits, group_size, mx.bfloat16)
        levels = fitted(W[:, inputs], w[inputs] / w[inputs].sum(), grid)
        expected[:, inputs] = W[:, inputs] - levels.values(levels.codes(W[:, inputs]))
    assert np.mean(found == expected) >= 0.999
    assert (w * found**2).sum() == pytest.approx((w * expected**2).sum(), rel=1e-5)


@repeatable
@given(
    hnp.arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)).map(lambda a: a.view(np.float32)),
    st.sampled_from(DTYPES),
)
def test_levels_are_rounded_as_mlx_casts_them(x: Float32, dtype: mx.Dtype) -> None:
    x = np.concatenate([x[np.isfinite(x)], EDGES])
    found = np.float32([kernels.narrowed(value, DROPPED[dtype]) for value in x])
    expected = stored(x, dtype)
    if dtype == mx.float16:  # what float16 cannot hold is refused, whatever its sign
        found, expected = (np.where(np.isinf(a), np.float32(np.inf), a) for a in (found, expected))
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
