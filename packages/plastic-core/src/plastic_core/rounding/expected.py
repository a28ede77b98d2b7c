"""What rounding is expected to leave and to cost, from one plain rounding and both Grams."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from plastic_core.linalg import (
    Float32,
    Float64,
    Matrix,
    as_matrix,
    in_threads,
    solve_transposed,
)
from plastic_core.loss.feedback import Feedback
from plastic_core.loss.gram_root import IDENTITY, GramRoot
from plastic_core.loss.loss import check_fit
from plastic_core.loss.pivots import pivots_of
from plastic_core.rounding.backbone import LEAST_OUTPUT_DAMPING
from plastic_core.rounding.levels import nearest_errors

PANEL = 256
"""Outputs whose errors are summed at a time."""


def expected_costs(
    W: Matrix,
    packings: Sequence[tuple[int, int]],
    *,
    inputs: GramRoot,
    outputs: GramRoot = IDENTITY,
    dtype: mx.Dtype = mx.bfloat16,
) -> Float64:
    r"""Return about what `error_feedback` in every one of some packings will be predicted to cost.

    With :math:`R = (I + F) \Delta (I + F)^T` and :math:`C = (I + K) \Gamma (I + K)^T` the feedback
    leaves

    .. math::

        \tfrac12 \mathrm{tr}(C E R E^T) = \tfrac12 \sum_{ij} \Gamma_i \Delta_j e_{ij}^2

    with :math:`e_{ij}` the distance of what was to be rounded from the nearest level. Here what is
    rounded is the weight itself, so that nothing of it depends on the order, and both Grams are
    factored once for all packings. What it leaves out: the errors made up for widen the range that
    the levels must cover, which tells at 2 bits, and the descent gains a little.

    Args:
        W: Weight of shape ``(out, in)``, NumPy or MLX, any floating dtype.
        packings: Bits and group size of each; the sizes divide ``in``.
        inputs: R, damped, of size ``in``.
        outputs: C, of size ``out``; damped by a tenth at least, as `error_feedback` has it.
        dtype: The dtype of the scales and biases.

    Returns:
        Nats per token, shape ``(len(packings),)``, float64. Measured over the matrices of a Llama
        of 5.8 M parameters: 0.4 to 1.1 of `predicted_cost` after `error_feedback` at 2 bits, 0.9 to
        2.1 at 3, 0.9 to 2.5 beyond, and within a kind of layer the same for neighbouring layers to
        a tenth (a heuristic: multiply by what a few of them show).

    Raises:
        TypeError: If ``W`` does not hold floating-point numbers.
        ValueError: As `error_feedback`.

    Note:
        ``(in^3 + out^3) / 3`` operations in float64, and per packing about 15 ns of one core for
        each entry of ``W``. Memory: one float32 matrix of the shape of ``W``, and four float64 ones
        of the shape of the larger Gram.

    Examples:
        >>> W = np.tile(np.float32([0, 1, 2, 3]), (2, 16))
        >>> R = GramRoot.of(np.ones((64, 64)), damping=1e-2)
        >>> expected_costs(W, [(2, 64), (2, 32)], inputs=R).tolist()
        [0.0, 0.0]
    """
    A = as_matrix(W, "W")
    largest = max(size for _, size in packings)
    check_fit((A.shape[0], A.shape[1]), inputs, outputs, "W")
    delta = pivots_of(inputs, largest)
    gamma = pivots_of(outputs, least_damping=LEAST_OUTPUT_DAMPING)
    weights = np.ones(A.shape[1], np.float32) if delta is None else delta.astype(np.float32)
    E, costs = np.empty_like(A), np.empty(len(packings))
    for number, (bits, size) in enumerate(packings):
        nearest_errors(A, bits, weights=weights, group_size=size, dtype=dtype, out=E)
        costs[number] = _weighted_energy(E, gamma, weights) / 2
    return costs


def expected_error(
    W: Matrix,
    bits: int,
    *,
    inputs: GramRoot,
    outputs: GramRoot = IDENTITY,
    group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
) -> Float32:
    r"""Return an error of about the size and the shape of that which `error_feedback` leaves.

    With the factors F and K of `expected_costs`, and Z what is left of every entry when it is
    rounded to the nearest level,

    .. math::

        E = (I + K)^{-T} \, Z \, (I + F)^{-1},

    which is what the feedback leaves if what it has to round lies as far from its levels as the
    weight itself does. No entry waits for another, so that this takes products alone.

    Args:
        W: Weight of shape ``(out, in)``, NumPy or MLX, any floating dtype.
        bits: 2, 3, 4, 5, 6 or 8.
        inputs: R, damped, of size ``in``.
        outputs: C, of size ``out``; damped by a tenth at least, as `error_feedback` has it.
        group_size: 32, 64 or 128, a divisor of ``in``.
        dtype: The dtype of the scales and biases.

    Returns:
        Shape ``(out, in)``, float32, the same bits for any number of threads. Measured: all
        matrices of two Llamas changed by errors of this shape, each scaled to the predicted cost of
        the real one, move the model 0.93 to 1.22 times as far as these do (a heuristic).

    Raises:
        TypeError: If ``W`` does not hold floating-point numbers.
        ValueError: As `error_feedback`.

    Note:
        ``(in^3 + out^3) / 3`` operations in float64, ``in^2 out + out^2 in`` in float32. Memory:
        three float32 matrices of the shape of ``W``, and as `GramRoot.feedback` for each Gram.

    Examples:
        >>> W = np.tile(np.float32([0, 1, 2, 3.5]), (2, 16))
        >>> R = GramRoot.of(np.eye(64), damping=0.0)
        >>> expected_error(W, 2, inputs=R).shape
        (2, 64)
    """
    A = as_matrix(W, "W")
    check_fit((A.shape[0], A.shape[1]), inputs, outputs, "W")
    R = inputs.feedback(group_size) or ()
    C = outputs.feedback(least_damping=LEAST_OUTPUT_DAMPING) or ()
    weights = np.ones(A.shape[1], np.float32)
    for part in R:
        weights[part.places] = part.pivots
    E = nearest_errors(A, bits, weights=weights, group_size=group_size, dtype=dtype)
    for part in C:
        E[part.places] = _spread(part, E[part.places])
    for part in R:
        E[:, part.places] = _spread(part, E[:, part.places].T).T
    return E


def _spread(G: Feedback, Z: Float32) -> Float32:
    """Return ``inverse(I + F).T @ Z`` for ``Z (n, k)``."""
    lower = np.ascontiguousarray((np.eye(len(G.F), dtype=np.float32) + G.F)[::-1, ::-1])
    return solve_transposed(lower, Z[::-1])[::-1]


def _weighted_energy(E: Float32, rows: Float64 | None, columns: Float32) -> float:
    """Return ``sum of rows_i columns_j E_ij^2``; E is used up."""

    def energies(part: slice) -> Float32:
        block = E[part]
        np.multiply(block, block, out=block)
        energy: Float32 = block @ columns
        return energy

    parts = [slice(i, i + PANEL) for i in range(0, len(E), PANEL)]
    found = np.concatenate(in_threads(energies, parts)).astype(np.float64)
    return float(found.sum() if rows is None else found @ rows)
