"""Rounding in which errors are made up for along the inputs and along the outputs.

The letters are those of ``rounded``.
"""

from __future__ import annotations

import numpy as np

from plastic_core.linalg import Float32, product
from plastic_core.loss.feedback import Feedback
from plastic_core.rounding import kernels
from plastic_core.rounding.rounded import Grid, Rounded

TILE = 256
"""Outputs that share a product with the Gram of the gradients."""
SPAN = 1024
"""Inputs that share a product with the Gram of the inputs; whole groups of every size."""


def round_two_sided(W: Float32, R: Feedback, C: Feedback, grid: Grid, sweeps: int) -> Rounded:
    """Round both ways, then descend: see `round_both_ways` and `descend_both_ways`."""
    result = Rounded.empty(W, grid)
    round_both_ways(result, R, C)
    for _ in range(sweeps):
        descend_both_ways(result, R.gram, C.gram)
    return result


def round_both_ways(result: Rounded, R: Feedback, C: Feedback) -> None:
    r"""Round so that ``tr(C E R E^T)`` is small, entry by entry.

    With :math:`R = (I + F) \Delta (I + F)^T`, :math:`C = (I + K) \Gamma (I + K)^T`, F and K
    strictly upper triangular, :math:`\Delta` and :math:`\Gamma` diagonal, and
    :math:`E = W - \hat W`,

    .. math::

        \mathrm{tr}(C E R E^T) = \|\Gamma^{1/2} (I + K)^T E (I + F) \Delta^{1/2}\|_F^2, \qquad
        \hat W = \mathrm{round}(W + K^T E + (I + K)^T E F),

    in which entry (i, j) needs those above it and to its left: its rounding error counts
    :math:`\Gamma_i \Delta_j` and nothing else. The levels of a group are fitted, for 64 outputs at
    a time, to what is known before the first of these.

    Args:
        result: A weight, to be filled.
        R: Gram of the inputs, shape ``(n, n)``.
        C: Gram of the gradients at the outputs, shape ``(m, m)``.

    Raises:
        ValueError: If the levels are beyond their type.

    References:
        Tseng, Sun and De Sa, *Model-preserving adaptive rounding*, arXiv 2505.22988.
    """
    (m, n), F, K, grid = result.W.shape, R.F, C.F, result.grid
    for outputs in _parts(m, TILE):
        tile = result.of(outputs)
        K_tile = np.ascontiguousarray(K[outputs, outputs])  # (t, t)
        KE = product(K[: outputs.start, outputs].T, result.E[: outputs.start])  # (t, n)
        IKE = np.empty_like(KE)  # (I + K)^T E
        for span in _parts(n, SPAN):
            IKEF = product(IKE[:, : span.start], F[: span.start, span])  # (t, s)
            for group, inputs in result.groups(span):
                since = slice(span.start, inputs.start)
                IKEF_group = IKE[:, since] @ F[since, inputs]  # (t, g)
                IKEF_group += IKEF[:, _within(span, inputs)]
                E_group, IKE_group = np.empty((2, *IKEF_group.shape), np.float32)
                kernels.round_tile(
                    tile.W[:, inputs],
                    KE[:, inputs],
                    IKEF_group,
                    np.ascontiguousarray(F[inputs, inputs]),
                    K_tile,
                    R.weights(inputs),
                    grid.top,
                    grid.dropped,
                    tile.levels[:, :, group],
                    tile.codes[:, inputs],
                    E_group,
                    IKE_group,
                )
                tile.E[:, inputs], IKE[:, inputs] = E_group, IKE_group
    grid.checked(result.levels)


def descend_both_ways(result: Rounded, R: Float32, C: Float32) -> None:
    """Lower ``tr(C E R E^T)`` in place: for each group of each output new levels, then new codes.

    Block coordinate descent, one sweep: tile after tile of outputs, in a tile group after group,
    in a group output after output. Every step is the exact minimum over what it changes, all else
    fixed, or leaves it as it is: the error does not rise, but for rounding.

    Args:
        result: What `round_both_ways` filled.
        R: The Gram of the inputs that it was rounded under, shape ``(n, n)``.
        C: That of the gradients, shape ``(m, m)``.
    """
    (m, n), grid = result.W.shape, result.grid
    for outputs in _parts(m, TILE):
        tile = result.of(outputs)
        C_tile = np.ascontiguousarray(C[outputs, outputs])  # (t, t)
        CE = product(C[outputs], result.E)  # (t, n)
        for span in _parts(n, SPAN):
            CER = product(CE, R[:, span])  # (t, s)
            risen = np.empty_like(CER)  # by how much C E has, since
            for group, inputs in result.groups(span):
                since, here = slice(span.start, inputs.start), _within(span, inputs)
                R_group = np.ascontiguousarray(R[inputs, inputs])  # (g, g)
                slope = risen[:, : here.start] @ R[since, inputs]  # (t, g)
                slope += CER[:, here]
                change = np.empty_like(slope)
                kernels.descend_tile(
                    tile.W[:, inputs],
                    tile.codes[:, inputs].astype(np.float32) @ R_group,
                    R_group,
                    C_tile,
                    grid.top,
                    grid.dropped,
                    slope,
                    tile.levels[:, :, group],
                    tile.codes[:, inputs],
                    tile.E[:, inputs],
                    change,
                )
                risen[:, here] = C_tile @ change
            CE[:, span] += risen


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _within(span: slice, inputs: slice) -> slice:
    return slice(inputs.start - span.start, inputs.stop - span.start)
