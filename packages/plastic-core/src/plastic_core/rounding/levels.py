"""The errors of plain rounding on fitted levels, for prices."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from plastic_core.linalg import Float32, Matrix, as_vector, in_threads
from plastic_core.rounding.backbone import check_magnitude, checked_weight
from plastic_core.rounding.rounded import Grid

PANEL = 256
"""Outputs that a thread rounds at a time."""


def nearest_errors(
    W: Matrix,
    bits: int,
    *,
    weights: Matrix | None = None,
    group_size: int = 64,
    dtype: mx.Dtype = mx.bfloat16,
    out: Float32 | None = None,
) -> Float32:
    r"""Return ``W - W^`` with every entry of ``W^`` the nearest level of its group.

    The levels are those with which `error_feedback` begins: fitted to the entries of the group, for
    nearly the least :math:`\sum_j w_j (W_j - \hat W_j)^2`, and rounded to ``dtype``. The errors of
    neighbours are not made up for, so this takes no factorisation and a hundredth of the time.

    Args:
        W: Weight of shape ``(out, in)``, NumPy or MLX, any floating dtype.
        bits: 2, 3, 4, 5, 6 or 8.
        weights: Of the inputs, positive, shape ``(in,)``, such as the diagonal of their Gram; by
            default all count alike.
        group_size: 32, 64 or 128, a divisor of ``in``.
        dtype: The dtype of the levels: bfloat16, float16 or float32.
        out: Where to write the errors, float32 of the shape of ``W``; may be ``W`` itself.

    Returns:
        Shape ``(out, in)``, float32: ``out`` where it is given.

    Raises:
        TypeError: If ``W`` does not hold floating-point numbers.
        ValueError: If ``W`` is empty, not finite or beyond 1e15, an argument is not offered,
            ``weights`` are not positive or not of the inputs, or the levels are beyond ``dtype``.

    Note:
        About 10 ns of one core per entry; outputs go side by side in threads. The same bits for any
        number of them. Memory beside ``out``: nothing to speak of.

    Examples:
        >>> W = np.tile(np.float32([0, 1, 2, 3]), (2, 16))
        >>> nearest_errors(W, 2).any(), nearest_errors(W + 1e-3, 2, dtype=mx.float32).max() < 1e-6
        (np.False_, np.True_)
    """
    A = checked_weight(W, bits, group_size, dtype)
    check_magnitude(A)
    w = _weights(weights, A.shape[1])
    # Numba takes half a second to load, for those who round alone.
    from plastic_core.rounding.kernels import round_entries

    w = w.reshape(-1, group_size)
    w = w / w.sum(axis=1, keepdims=True)
    E = np.empty_like(A) if out is None else out
    if E.shape != A.shape or E.dtype != np.float32:
        raise ValueError(
            f"`out` must be float32 of shape {A.shape}, got {E.dtype} of shape {E.shape}."
        )
    grid = Grid(bits, group_size, dtype)

    def round_panel(outputs: slice) -> None:
        round_entries(A[outputs], w, grid.top, grid.dropped, group_size, E[outputs])

    in_threads(round_panel, [slice(i, i + PANEL) for i in range(0, len(A), PANEL)])
    grid.checked(E)
    return E


def _weights(weights: Matrix | None, inputs: int) -> Float32:
    if weights is None:
        return np.ones(inputs, np.float32)
    w = as_vector(weights, "weights")
    if len(w) != inputs or not w.min() > 0:
        raise ValueError(
            f"`weights` must be {inputs} positive numbers, one for each column of `W`, got "
            f"{len(w)}, the least {w.min(initial=np.inf):.3g}."
        )
    return w
