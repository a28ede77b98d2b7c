"""Rounding under the Gram of the inputs: later inputs make up for the errors of earlier ones.

The letters are those of ``rounded``.
"""

from __future__ import annotations

import numpy as np

from plastic_core.linalg import Float32, in_threads
from plastic_core.loss.feedback import Feedback
from plastic_core.rounding import kernels
from plastic_core.rounding.rounded import Grid, Rounded

PANEL = 256
"""Outputs that are rounded at a time."""


def round_one_sided(W: Float32, R: Feedback, grid: Grid, sweeps: int) -> Rounded:
    """Round with feedback, then descend: see `round_with_feedback` and `descend`.

    Outputs mind no others: they are rounded side by side.
    """
    result = Rounded.empty(W, grid)

    def round_panel(outputs: slice) -> None:
        part = result.of(outputs)
        round_with_feedback(part, R)
        for _ in range(sweeps):
            descend(part, R.gram)

    in_threads(round_panel, [slice(i, i + PANEL) for i in range(0, len(W), PANEL)])
    return result


def round_with_feedback(result: Rounded, R: Feedback) -> None:
    r"""Round the inputs of a weight in turn; each makes up for the errors of those before it.

    With :math:`R = (I + F) \Delta (I + F)^T`, F strictly upper triangular, :math:`\Delta` diagonal,
    and :math:`E = W - \hat W`,

    .. math::

        \mathrm{tr}(E R E^T) = \|E (I + F) \Delta^{1/2}\|_F^2, \qquad
        \hat W = \mathrm{round}(W + E F),

    in which column j needs the columns before it alone: its rounding error counts
    :math:`\Delta_j` and nothing else. The levels of a group are fitted, with these weights, to its
    columns as they are when its turn comes.

    Args:
        result: A weight, to be filled.
        R: Gram of the inputs, shape ``(n, n)``.

    Raises:
        ValueError: If the levels are beyond their type.

    References:
        Frantar et al., *GPTQ*, arXiv 2210.17323, in the form of Chee et al., *QuIP*,
        arXiv 2307.13304, theorem 6: the same numbers without an inverse of R.
    """
    W, grid, codes, levels, E = result.W, result.grid, result.codes, result.levels, result.E
    for group, inputs in result.groups():
        before = slice(0, inputs.start)
        T = E[:, before] @ R.F[before, inputs]  # (m, g)
        T += W[:, inputs]
        kernels.round_outputs(
            W[:, inputs],
            np.ascontiguousarray(R.F[inputs, inputs]),
            R.weights(inputs),
            grid.top,
            grid.dropped,
            T,
            levels[:, :, group],
            codes[:, inputs],
            E[:, inputs],
        )
    grid.checked(levels)


def descend(result: Rounded, R: Float32) -> None:
    """Lower ``tr(E R E^T)`` in place: for one group after the other new levels, then new codes.

    Block coordinate descent, one sweep. Every step is the exact minimum over what it changes, all
    else fixed, or leaves it as it is: the error does not rise, but for rounding.

    Args:
        result: What `round_with_feedback` filled.
        R: The Gram it was rounded under, shape ``(n, n)``.
    """
    W, grid, codes, levels, E = result.W, result.grid, result.codes, result.levels, result.E
    for group, inputs in result.groups():
        R_group = np.ascontiguousarray(R[inputs, inputs])  # (g, g)
        kernels.descend_outputs(
            W[:, inputs],
            codes[:, inputs].astype(np.float32) @ R_group,
            R_group,
            grid.top,
            grid.dropped,
            E @ R[:, inputs],
            levels[:, :, group],
            codes[:, inputs],
            E[:, inputs],
        )
