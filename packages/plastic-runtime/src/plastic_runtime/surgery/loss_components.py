"""A plastic part in components that each have their price in loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from plastic_core import RankLayer, linalg
from plastic_core.factors import Arrays, as_arrays

from plastic_runtime.surgery.gradient_factors import GradientFactors

DAMPING = 0.03
"""What is added to each Gram, as a fraction of its mean eigenvalue (heuristic): a direction that
the probe happens to miss must cost something."""

LEAST_ENERGY = 1e-24
"""What a direction has that nothing passes: so little that it is worth nothing, and its inverse no
overflow in float32."""

Float64 = NDArray[np.float64]


def loss_components(layer: RankLayer, gradient: GradientFactors) -> Arrays:
    r"""Return the plastic part as the sum of components, the one that is worth most first.

    With :math:`R = E[x x^T]` over the inputs and :math:`C = E[g g^T]` over the gradients of the
    summed loss at the outputs, a change D of the weight costs about :math:`\tfrac12
    \|C^{1/2} D R^{1/2}\|_F^2` (see ``plastic_core.predicted_cost``). The components are the
    singular triplets of the plastic part in that norm: of all parts of rank k the first k leave
    the least to pay, and component i is worth :math:`S_i^2 / 2`, comparable between layers.

    Only the Grams of ``Vh x`` and of ``U^T g`` are formed, of order r; so the cost is
    ``O(tokens (in + out) r)``. That the labels are the text's own, not drawn from the model, makes
    C an empirical Fisher matrix: a heuristic where the model fits the text badly.

    Args:
        layer: The layer; not changed.
        gradient: What passes it, from ``gradient_factors``.

    Returns:
        ``U (out, r)``, ``S (r,)`` non-negative and non-increasing, ``Vh (r, in)``, float32, with
        ``U diag(S) Vh`` the plastic part up to rounding. Neither ``U`` nor ``Vh`` is orthonormal.

    References:
        Martens and Grosse, *Optimizing neural networks with Kronecker-factored approximate
        curvature*, 2015, arXiv 1503.05671, section 3.
    """
    U, S, Vh = (part.astype(np.float64) for part in as_arrays(layer.factors()))
    tokens = len(gradient.inputs)
    left, left_inverse = _root(gradient.gradients, U, tokens)
    right, right_inverse = _root(gradient.inputs, Vh.T, 1 / tokens)
    P, values, Qh = linalg.thin_svd((left * S) @ right.T)
    parts = U @ (left_inverse @ P), values, (Qh @ right_inverse.T) @ Vh
    return parts[0].astype(np.float32), parts[1].astype(np.float32), parts[2].astype(np.float32)


def _root(rows: NDArray[np.float32], basis: Float64, weight: float) -> tuple[Float64, Float64]:
    """Return ``A`` and a right inverse, ``A^T A`` being the damped Gram of ``rows @ basis``."""
    inner = (rows @ basis.astype(np.float32)).astype(np.float64)
    mean = float(np.vdot(rows, rows)) / rows.shape[1]
    gram = weight * (inner.T @ inner + DAMPING * mean * basis.T @ basis)
    energies, Q = linalg.eigh(gram)
    # A component with U = 0 has no energy: nothing to pay, and no division by zero.
    lengths = np.sqrt(np.maximum(energies, max(1e-14 * energies.max(initial=0.0), LEAST_ENERGY)))
    return (Q * lengths).T, Q / lengths
