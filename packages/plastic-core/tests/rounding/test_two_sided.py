"""Rounding under both Grams: the loss that is predicted falls, and nothing else is promised."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plastic_core import Backbone, GramRoot, difference, error_feedback, linalg, predicted_cost
from plastic_core.factors.quantize import BITS
from plastic_core.linalg import Float32, Float64
from plastic_core.loss.feedback import feedback_of
from plastic_core.rounding.one_sided import round_one_sided
from plastic_core.rounding.rounded import Grid, Rounded
from plastic_core.rounding.two_sided import (
    SPAN,
    TILE,
    descend_both_ways,
    round_both_ways,
    round_two_sided,
)
from plastic_core.testing import EPS, repeatable
from plastic_core.testing import bits as bytes_of

any_bits = st.sampled_from(BITS)
seeds = st.integers(0, 99)


def weight(out: int, inner: int, seed: int = 0) -> Float32:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((out, inner), np.float32) / np.float32(inner) ** 0.5


def correlated(n: int, seed: int = 0) -> Float64:
    """A Gram with a decaying spectrum, damped, of mean eigenvalue one."""
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((4 * n, n)) * np.geomspace(1, 0.03, n)) @ rng.standard_normal((n, n))
    G = linalg.gram(X)
    G += 0.05 * np.trace(G) / n * np.eye(n)
    return G * n / np.trace(G)


def feedback(
    W: Float32, bits: int, R: Float64, *, C: Float64 | None = None, group_size: int = 64
) -> Backbone:
    """`error_feedback` under Grams that are damped by a hundredth, C by a tenth."""
    inputs, outputs = (None if A is None else GramRoot.of(A, damping=1e-2) for A in (R, C))
    assert inputs is not None
    outputs = outputs or GramRoot(None)
    return error_feedback(W, bits, inputs=inputs, outputs=outputs, group_size=group_size)


def cost(found: Rounded, R: Float64, C: Float64) -> float:
    E = found.E.astype(np.float64)
    return float(np.sum((C @ E) * (E @ R)))


def values(found: Rounded) -> Float32:
    step, start = np.repeat(found.levels, found.grid.group_size, axis=2)
    result: Float32 = step * found.codes + start
    return result


@repeatable
@given(any_bits, seeds, st.sampled_from([(1, 32), (5, 64), (70, 64), (130, 96)]))
def test_the_identity_in_place_of_an_output_gram_changes_no_code(
    bits: int, seed: int, shape: tuple[int, int]
) -> None:
    W, R, C = weight(*shape, seed), correlated(shape[1], seed), np.eye(shape[0])
    grid = Grid(bits, 32, mx.float32)
    one = round_one_sided(W, feedback_of(R.copy()), grid, 0)
    both = round_two_sided(W, feedback_of(R.copy()), feedback_of(C.copy()), grid, 0)
    # A sum in another order may move an entry that lies half way between two levels.
    assert np.mean(one.codes != both.codes) <= 0.01
    assert cost(both, R, C) == pytest.approx(cost(one, R, C), rel=0.02)


@pytest.mark.parametrize("outputs", [73, TILE + 9])
def test_every_code_is_the_nearest_to_what_the_formula_says(outputs: int) -> None:
    """An entry after the other, in float64, as the docstring has it."""
    W, R, C = weight(outputs, 64), correlated(64), correlated(outputs, 1)
    found = Rounded.empty(W, Grid(3, 32, mx.float32))
    round_both_ways(found, feedback_of(R.copy()), feedback_of(C.copy()))
    F, K = feedback_of(R.copy()).F, feedback_of(C.copy()).F
    error = W.astype(np.float64) - values(found)
    above = K.T @ error
    target = W + above + (error + above) @ F
    moved = np.abs(target - values(found))
    step, low = np.repeat(found.levels, 32, axis=2)
    inside = (target >= low - step / 2) & (target <= low + 7.5 * step)
    assert inside.mean() > 0.9
    assert (moved <= step * (0.5 + 1e-4))[inside].all()


@repeatable
@given(any_bits, seeds)
def test_a_sweep_never_raises_the_cost_and_keeps_track_of_the_error(bits: int, seed: int) -> None:
    W, R, C = weight(70, 64, seed), correlated(64, seed), correlated(70, seed + 1)
    found = Rounded.empty(W, Grid(bits, 32, mx.bfloat16))
    round_both_ways(found, feedback_of(R.copy()), feedback_of(C.copy()))
    before = cost(found, R, C)
    for _ in range(2):
        descend_both_ways(found, R.astype(np.float32), C.astype(np.float32))
        assert np.abs(found.E - (W - values(found))).max() <= 8 * EPS * np.abs(W).max()
        after = cost(found, R, C)
        assert after <= before * (1 + 100 * EPS)
        before = after


@pytest.mark.parametrize("bits", BITS)
def test_both_ways_cost_less_than_one_way_on_correlated_outputs(bits: int) -> None:
    W, R, C = weight(96, 128), correlated(128), correlated(96, 1)
    grid = Grid(bits, 64, mx.float32)
    one = round_one_sided(W, feedback_of(R.copy()), grid, 2)
    both = round_two_sided(W, feedback_of(R.copy()), feedback_of(C.copy()), grid, 2)
    assert cost(both, R, C) < 0.7 * cost(one, R, C)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_predicted_cost_of_a_backbone_falls(bits: int) -> None:
    W, R, C = weight(96, 128), correlated(128), correlated(96, 1)
    roots = {"inputs": GramRoot.of(R, damping=1e-2), "outputs": GramRoot.of(C, damping=1e-2)}
    one, both = feedback(W, bits, R), feedback(W, bits, R, C=C)
    assert both.nbytes == one.nbytes
    costs = [predicted_cost(difference(W, b), **roots) for b in (one, both)]
    assert costs[1] < 0.7 * costs[0]


def test_the_same_arguments_give_the_same_bits() -> None:
    W, R, C = weight(96, 128), correlated(128), correlated(96, 1)
    first, second = (feedback(W, 3, R, C=C) for _ in range(2))
    for a, b in zip(first.arrays().values(), second.arrays().values(), strict=True):
        assert bytes_of(a) == bytes_of(b)


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_bytes_are_the_same_for_any_number_of_threads(two_sided: bool) -> None:
    m, n = 2 * TILE + 8, SPAN + 128
    W, R, C = weight(m, n), correlated(n), correlated(m, 1) if two_sided else None
    found = set[bytes]()
    for workers in (1, 2, 4):
        with linalg.using_workers(workers):
            backbone = feedback(W, 3, R, C=C)
        found.add(b"".join(bytes_of(array) for array in backbone.arrays().values()))
    assert len(found) == 1


def test_a_zero_matrix_and_a_single_output_are_rounded() -> None:
    R, C = correlated(64), correlated(3, 1)
    zero = feedback(np.zeros((3, 64), np.float32), 2, R, C=C)
    assert not zero.dequantized().any()
    single = feedback(weight(1, 64), 4, R, C=np.ones((1, 1)))
    assert single.shape == (1, 64)


def test_an_output_gram_that_does_not_fit_or_is_not_finite_is_refused() -> None:
    W, R = weight(6, 64), correlated(64)
    with pytest.raises(ValueError, match=r"`outputs` must be of size 6, .* rows of `W`, got 5"):
        feedback(W, 4, R, C=np.eye(5))
    with pytest.raises(ValueError, match="finite"):
        feedback(W, 4, R, C=np.full((6, 6), np.nan))
    with pytest.raises(ValueError, match="nothing was measured"):
        feedback(W, 4, R, C=np.zeros((6, 6)))


@pytest.mark.parametrize("bits", [2, 4])
def test_parts_that_share_no_block_are_rounded_by_themselves(bits: int) -> None:
    W = weight(12, 256)
    R = np.stack([correlated(128, seed=i) for i in range(2)])
    C = np.stack([correlated(4, seed=i) for i in range(3)])
    both = feedback(W, bits, R, C=C).dequantized()
    for i, block in enumerate(R):
        for j, outputs in enumerate(C):
            rows, columns = slice(4 * j, 4 * j + 4), slice(128 * i, 128 * i + 128)
            # Damping goes by the mean of all blocks, so it is given as part of them here.
            H = block + 1e-2 * np.trace(R, axis1=1, axis2=2).sum() / 256 * np.eye(128)
            G = outputs + 0.1 * np.trace(C, axis1=1, axis2=2).sum() / 12 * np.eye(4)
            R_part, C_part = undamped(H, 1e-2), undamped(G, 0.1)
            part = feedback(W[rows, columns], bits, R_part, C=C_part)
            np.testing.assert_array_equal(both[rows, columns], part.dequantized())


def undamped(H: Float64, damping: float) -> Float64:
    """The matrix that damping turns into ``H``."""
    mean = np.trace(H) / len(H) / (1 + damping)
    found: Float64 = H - damping * mean * np.eye(len(H))
    return found


def test_under_a_diagonal_of_outputs_every_row_is_rounded_by_itself() -> None:
    W, R = weight(5, 128), correlated(128)
    alone = feedback(W, 3, R)
    weighed = feedback(W, 3, R, C=np.arange(1.0, 6.0).reshape(5, 1, 1))
    np.testing.assert_array_equal(weighed.dequantized(), alone.dequantized())


def test_a_diagonal_of_inputs_is_its_own_blocks() -> None:
    W, power = weight(5, 128), np.random.default_rng(0).uniform(0.1, 2.0, 128)
    diagonal = feedback(W, 3, power.reshape(128, 1, 1))
    groups = feedback(W, 3, power.reshape(2, 64, 1) * np.eye(64))
    np.testing.assert_array_equal(diagonal.dequantized(), groups.dequantized())


def test_blocks_that_cut_a_group_are_refused() -> None:
    with pytest.raises(ValueError, match=r"whole groups of 64, or of 1, got \(4, 32, 32\)"):
        feedback(weight(5, 128), 3, np.stack([correlated(32)] * 4))
