"""What rounding is expected to cost: exact where nothing can be made up for, near where it can."""

from __future__ import annotations

import numpy as np
import pytest
from plastic_core import GramRoot, difference, error_feedback, predicted_cost
from plastic_core.linalg import using_workers
from plastic_core.loss.pivots import pivots_of
from plastic_core.rounding import expected_costs, expected_error, nearest_errors

PACKINGS = [(bits, size) for bits in (2, 3, 4, 8) for size in (32, 64, 128)]


def grams(m: int, n: int, rng: np.random.Generator) -> tuple[GramRoot, GramRoot]:
    X, Y = rng.standard_normal((n // 2, n)), rng.standard_normal((m // 2, m))
    R = X.T @ X / len(X) + np.diag(rng.random(n))
    C = Y.T @ Y / len(Y) + np.diag(rng.random(m))
    return GramRoot.of(R, damping=1e-2), GramRoot.of(C, damping=0.1)


def test_pivots_are_those_of_the_factorisation_in_the_order_of_rounding() -> None:
    R, _ = grams(8, 128, np.random.default_rng(0))
    (factored,) = R.feedback(32) or ()
    scale = np.trace(R.gram) * (1 + R.damping) / 128  # feedback works with a mean eigenvalue of 1
    wanted = np.empty(128)
    wanted[factored.places] = scale * factored.pivots
    np.testing.assert_allclose(pivots_of(R, 32), wanted, rtol=1e-4)


def test_pivots_multiply_to_the_determinant() -> None:
    R, _ = grams(8, 64, np.random.default_rng(1))
    G = R.gram + 0.3 * np.trace(R.gram) / 64 * np.eye(64)
    found = pivots_of(R, least_damping=0.3)
    assert found is not None
    assert np.log(found).sum() == pytest.approx(np.linalg.slogdet(G)[1], rel=1e-10)


def test_pivots_of_blocks_are_those_of_each_and_the_identity_has_none() -> None:
    blocks = np.stack([np.eye(32), 4 * np.eye(32)])
    found = pivots_of(GramRoot.of(blocks, damping=0.0), 32)
    assert found is not None
    assert found.tolist() == [1.0] * 32 + [4.0] * 32
    assert pivots_of(GramRoot(None)) is None


def test_it_is_exact_where_no_error_can_be_made_up_for() -> None:
    rng = np.random.default_rng(2)
    W = rng.standard_normal((40, 128)).astype(np.float32)
    powers = rng.random(128) + 0.1
    R, C = GramRoot.of(np.diag(powers), damping=0.0), GramRoot.of(np.eye(40), damping=0.0)
    found = expected_costs(W, PACKINGS, inputs=R, outputs=C)
    weights = powers.astype(np.float32)
    for cost, (bits, size) in zip(found, PACKINGS, strict=True):
        E = nearest_errors(W, bits, weights=weights, group_size=size)
        damped = GramRoot.of(1.1 * np.eye(40), damping=0.0)  # as error_feedback has it
        assert cost == pytest.approx(predicted_cost(E, inputs=R, outputs=damped), rel=1e-5)


def test_it_is_near_what_error_feedback_leaves() -> None:
    rng = np.random.default_rng(3)
    W = rng.standard_normal((128, 128)).astype(np.float32)
    R, C = grams(128, 128, rng)
    found = expected_costs(W, PACKINGS, inputs=R, outputs=C)
    for cost, (bits, size) in zip(found, PACKINGS, strict=True):
        backbone = error_feedback(W, bits, inputs=R, outputs=C, group_size=size, sweeps=0)
        left = predicted_cost(difference(W, backbone), inputs=R, outputs=C)
        least = 0.4 if bits == 2 else 0.8
        assert least < cost / left < 1.25


def test_more_bits_and_smaller_groups_cost_less() -> None:
    rng = np.random.default_rng(4)
    W = rng.standard_normal((64, 128)).astype(np.float32)
    R, C = grams(64, 128, rng)
    costs = dict(zip(PACKINGS, expected_costs(W, PACKINGS, inputs=R, outputs=C), strict=True))
    assert costs[4, 64] < costs[3, 64] / 3
    assert costs[8, 64] < costs[4, 64] / 100
    assert costs[3, 32] < costs[3, 64] < costs[3, 128]


def test_the_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(5)
    W = rng.standard_normal((600, 64)).astype(np.float32)
    R, C = grams(600, 64, rng)
    found = set()
    for count in (1, 2, 4):
        with using_workers(count):
            costs = expected_costs(W, [(3, 64)], inputs=R, outputs=C)
        found.add(costs.tobytes())
    assert len(found) == 1


def test_a_gram_that_does_not_fit_is_refused() -> None:
    W = np.ones((8, 64), np.float32)
    with pytest.raises(ValueError, match="`inputs` must be of size 64"):
        expected_costs(W, [(2, 64)], inputs=GramRoot.of(np.eye(32), damping=0.0))


def test_an_expected_error_is_predicted_to_cost_what_is_expected() -> None:
    rng = np.random.default_rng(6)
    W = rng.standard_normal((96, 128)).astype(np.float32)
    R, C = grams(96, 128, rng)  # C is damped as error_feedback has it
    found = expected_costs(W, PACKINGS, inputs=R, outputs=C)
    for cost, (bits, size) in zip(found, PACKINGS, strict=True):
        E = expected_error(W, bits, inputs=R, outputs=C, group_size=size)
        # One order of the groups, that of the largest, serves all costs.
        near = 1e-4 if size == max(PACKINGS)[1] else 0.1
        assert predicted_cost(E, inputs=R, outputs=C) == pytest.approx(cost, rel=near)


def test_an_expected_error_is_that_of_plain_rounding_where_nothing_can_be_made_up_for() -> None:
    W = np.random.default_rng(7).standard_normal((40, 128)).astype(np.float32)
    R = GramRoot.of(np.ones((128, 1, 1)), damping=0.0)
    E = expected_error(W, 3, inputs=R)
    np.testing.assert_array_equal(E, nearest_errors(W, 3))


@pytest.mark.parametrize("size", [32, 64])
def test_an_expected_error_takes_blocks_for_themselves(size: int) -> None:
    rng = np.random.default_rng(8)
    W = rng.standard_normal((40, 128)).astype(np.float32)
    (R, _), (other, _) = (grams(8, 64, rng) for _ in range(2))
    assert R.gram is not None
    assert other.gram is not None
    both = GramRoot.of(np.stack([R.gram, other.gram]), damping=1e-2)
    scale = np.trace(R.gram + other.gram) / 2
    alone = [np.eye(64) * 1e-2 * scale / 64 + g.gram for g in (R, other)]
    E = expected_error(W, 4, inputs=both, group_size=size)
    for part, gram in zip((slice(64), slice(64, None)), alone, strict=True):
        own = GramRoot.of(gram, damping=0.0)
        wanted = expected_error(W[:, part], 4, inputs=own, group_size=size)
        np.testing.assert_allclose(E[:, part], wanted, rtol=1e-3, atol=1e-6)


def test_an_expected_error_is_the_same_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(9)
    W = rng.standard_normal((700, 640)).astype(np.float32)
    R, C = grams(700, 640, rng)
    found = []
    for count in (1, 2, 4):
        with using_workers(count):
            found.append(expected_error(W, 3, inputs=R, outputs=C))
    assert all((found[0] == E).all() for E in found)
