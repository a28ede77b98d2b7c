"""The curve of a matrix over the ranks of its correction, from what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import (
    Backbone,
    Certificate,
    Correction,
    GramRoot,
    Operator,
    correction_costs,
    difference,
)
from plastic_core.linalg import Float64, frobenius_norm, spectral_norm
from plastic_runtime.dialling import ComponentCurve

from plastic_export.plan.gram_uses import GramRoots
from plastic_export.plan.offers import Offer

POINTS = 64
"""Most ranks of a curve beside its first: a 64th of a matrix is fine enough where there are many
matrices (heuristic)."""
DIGITS = 6
"""Significant digits of a curve, which is exact to about 1e-7 of its first value."""
_PLAIN = GramRoot(None)


def curve_of(
    weight: NDArray[np.float32],
    backbone: Backbone | None,
    correction: Correction,
    roots: GramRoots,
    offer: Offer,
    certificate: Certificate,
) -> ComponentCurve:
    """Return what is left to pay with fewer components of one matrix, priced as its plan does.

    `correction_costs` of what is stored, times what makes the last one the price of the offer: the
    factor that the plan's measurements gave.

    Args:
        weight: The matrix.
        backbone: Its backbone; None for none, and then one component is the least.
        correction: Its components, the most important first.
        roots: What it was rounded under.
        offer: How it is stored, at its price.
        certificate: The errors of all of it.

    Cost:
        What `predicted_cost` costs, and one product with the components.
    """
    ranks = curve_ranks(correction.rank, bare=backbone is None)
    E = weight if backbone is None else difference(weight, backbone)
    costs = correction_costs(E, correction, inputs=roots.inputs, outputs=roots.outputs)
    factor = offer.cost / costs[-1] if costs[-1] else 1.0
    errors = _relative_errors(weight, E, correction)
    inner = list(ranks[:-1])  # the last errors and the last price are known exactly
    return ComponentCurve(
        ranks,
        (*_rounded(factor * costs[inner]), offer.cost),
        (*_rounded(errors[inner]), certificate.relative_error),
        certificate.spectral_error,
        spectral_norm(weight),
    )


def healed_curve(
    curve: ComponentCurve,
    weight: NDArray[np.float32],
    backbone: NDArray[np.float32] | None,
    products: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    certificate: Certificate,
) -> ComponentCurve:
    """Return a curve with the errors of what is stored once that was trained.

    The prices stay those of before. What has changed is the same at every rank but for the scales
    of the components themselves, so they still say which components are worth their bytes.

    Args:
        curve: What was left to pay before.
        weight: The matrix in the source.
        backbone: What is stored of it beside its components, shape (out, in); None for nothing.
        products: Pairs of ``U`` (out, r) and ``V`` (r, in): all components, awake and asleep, in
            the order of their worth.
        certificate: The errors of all of it.
    """
    U = np.concatenate([left for left, _ in products], axis=1)
    V = np.concatenate([right for _, right in products], axis=0)
    E = weight if backbone is None else weight - backbone
    correction = Correction(mx.array(U.T), mx.array(V))
    errors = _relative_errors(weight, E, correction)[list(curve.ranks[:-1])]
    return replace(
        curve,
        relative_error=(*_rounded(errors), certificate.relative_error),
        spectral_error=certificate.spectral_error,
    )


def _relative_errors(
    weight: NDArray[np.float32], E: NDArray[np.float32] | Operator, correction: Correction
) -> Float64:
    """Return the Frobenius error at every rank over the norm of the weight."""
    squares = 2 * correction_costs(E, correction, inputs=_PLAIN, outputs=_PLAIN)
    norm = frobenius_norm(weight)
    return np.sqrt(squares) / norm if norm else squares


def curve_ranks(most: int, *, bare: bool) -> tuple[int, ...]:
    """Return the ranks of a curve: 0, or 1 for a matrix without a backbone, up to ``most``.

    Examples:
        >>> curve_ranks(3, bare=False), len(curve_ranks(1000, bare=True))
        ((0, 1, 2, 3), 65)
    """
    least = 1 if bare else 0
    return tuple(
        np.unique(
            np.linspace(least, most, min(most - least, POINTS) + 1).round().astype(int)
        ).tolist()
    )


def _rounded(values: Float64) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
