"""The cost of a change of a weight in nats per token, and its cheapest parts."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from plastic_core import linalg
from plastic_core.factors.factors import Factors
from plastic_core.factors.lowrank import factorized_lowrank
from plastic_core.factors.operators import Operand, as_operator
from plastic_core.linalg import Float32, Float64, as_matrix, as_vector, to_numpy
from plastic_core.loss.gram_root import GramRoot
from plastic_core.loss.weighted import weighted_spectrum


def predicted_cost(D: Operand, *, inputs: GramRoot, outputs: GramRoot) -> float:
    r"""Return the rise of the loss that the change ``D`` of a weight is predicted to cause.

    With :math:`R = E[x x^T]` over the inputs and :math:`C = E[g g^T]` over the gradients at the
    outputs, both damped, the Fisher information of the weight is about :math:`C \otimes R`, and the
    divergence from the original model to second order

    .. math::

        \tfrac12 \|C^{1/2} D R^{1/2}\|_F^2 = \tfrac12 \mathrm{tr}(C D R D^T).

    Args:
        D: What is taken from the weight or added to it, shape ``(m, n)``: a matrix, factors, or
            what `difference` returns.
        inputs: Root of R, of size n.
        outputs: Root of C, of size m.

    Returns:
        Nats per token, if the gradients are those of the summed negative log-likelihood of labels
        sampled from the model.

    Raises:
        TypeError: If ``D`` does not hold floating-point numbers.
        ValueError: If ``D`` is not a finite matrix, or a root does not fit it.

    Note:
        ``m n (m + n)`` multiply-adds in float64, the part of an identity left out, and three
        float64 matrices of the shape of ``D``.

    Examples:
        >>> D = np.diag(np.float32([3, 2, 1]))
        >>> R, C = GramRoot.of(np.diag([1.0, 4.0, 1.0]), damping=0.0), GramRoot(None)
        >>> round(predicted_cost(D, inputs=R, outputs=C), 9)  # (9 + 4 * 4 + 1) / 2
        13.0

    References:
        Martens and Grosse, *Optimizing neural networks with Kronecker-factored approximate
        curvature*, ICML 2015, section 3, https://arxiv.org/abs/1503.05671.
    """
    return whitened(D, inputs, outputs).norm ** 2 / 2


def loss_spectrum(D: Operand, *, inputs: GramRoot, outputs: GramRoot) -> Float64:
    r"""Return the singular values :math:`s_i` of ``C^(1/2) D R^(1/2)``: what each rank costs.

    Leaving out all but the first r components of ``D`` costs :math:`\tfrac12 \sum_{i>r} s_i^2` nats
    per token (see `predicted_cost`), and nothing of rank r costs less.

    Args:
        D: The matrix to approximate, shape ``(m, n)``: a weight, or what `difference` returns.
        inputs: Root of R, of size n.
        outputs: Root of C, of size m.

    Returns:
        Shape ``(min(m, n),)``, float64, non-negative and non-increasing; exact to 1e-7 of the
        Frobenius norm.

    Raises:
        TypeError: If ``D`` does not hold floating-point numbers.
        ValueError: If ``D`` is not a finite matrix, or a root does not fit it.

    Note:
        What `predicted_cost` does, and the eigenvalues of a matrix of order ``min(m, n)``.

    Examples:
        >>> D = np.diag(np.float32([3, 2, 1]))
        >>> R, C = GramRoot.of(np.diag([1.0, 4.0, 1.0]), damping=0.0), GramRoot(None)
        >>> loss_spectrum(D, inputs=R, outputs=C).round(5).tolist()
        [4.0, 3.0, 1.0]
    """
    _, M, norm = whitened(D, inputs, outputs)
    return norm * weighted_spectrum(M)


def loss_factors(
    D: Operand, rank: int, *, inputs: GramRoot, outputs: GramRoot, key: int | mx.array = 0
) -> Factors:
    r"""Return the approximation of a rank that is predicted to cost the least.

    With roots :math:`C = L_C L_C^T`, :math:`R = L_R L_R^T` and the singular value decomposition
    :math:`L_C^T D L_R = P \Sigma Q^T`, the best approximation of rank r is

    .. math::

        D_r = L_C^{-T} P_r \Sigma_r Q_r^T L_R^{-1} = L_C^{-T} P_r \, P_r^T L_C^T D .

    The second form is the one computed: R is not inverted, and an inexact :math:`P_r` is made the
    most of.

    Args:
        D: The matrix to approximate, shape ``(m, n)``: a weight, or what `difference` returns.
        rank: The number of components, from 1 to ``min(m, n)``.
        inputs: Root of R, of size n.
        outputs: Root of C, of size m.
        key: Seed or key of all that is random.

    Returns:
        Float32 factors. ``S`` are the leading values of `loss_spectrum`: component i is worth
        ``S[i]^2 / 2`` nats per token, and the first k components are the best of rank k. Neither
        the columns of ``U`` nor the rows of ``Vh`` are orthonormal: those of ``L_C^T U`` and
        ``Vh L_R`` are. No certificate: `predicted_cost` of what is left, and `certify`, tell it.

    Raises:
        TypeError: If ``D`` does not hold floating-point numbers.
        ValueError: If ``D`` is not a finite matrix, a root does not fit it, ``rank`` is out of
            range, or a factor is beyond float32.

    Note:
        What `predicted_cost` does and what `factorized_lowrank` does for the rank.

    Examples:
        >>> D = np.diag(np.float32([3, 2, 1]))
        >>> R, C = GramRoot.of(np.diag([1.0, 4.0, 1.0]), damping=0.0), GramRoot(None)
        >>> factors = loss_factors(D, 1, inputs=R, outputs=C)
        >>> abs(to_numpy(factors.dense())).round(5).tolist()
        [[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]

    References:
        With C = I: Zhang et al., *QERA: an analytical framework for quantization error
        reconstruction*, arXiv 2410.06040, theorem 1.
    """
    return leading_factors(whitened(D, inputs, outputs), rank, outputs, key)


class Whitened(NamedTuple):
    """The parts ``L_C^T D``; ``L_C^T D L_R`` scaled to a norm of 1; and that norm."""

    LtD: Float64
    M: Float32
    norm: float


def whitened(D: Operand, inputs: GramRoot, outputs: GramRoot) -> Whitened:
    """Write ``D`` in the coordinates in which half its energy is the predicted cost."""
    operator = as_operator(D, "D")
    check_fit(operator.shape, inputs, outputs)
    LtD = outputs.root_times(operator.rows(slice(None), np.float64))
    M = inputs.times_root(LtD)
    norm = math.sqrt(linalg.squared_norm(M))
    return Whitened(LtD, as_matrix(M / (norm or 1.0), "D"), norm)


def leading_factors(
    white: Whitened, rank: int, outputs: GramRoot, key: int | mx.array = 0
) -> Factors:
    """Return the factors of `loss_factors`, from what `whitened` returned."""
    LtD, M, norm = white
    best = factorized_lowrank(M, rank, key=key)
    P, S = to_numpy(best.U).astype(np.float64), norm * to_numpy(best.S).astype(np.float64)
    rows = P.T @ LtD
    Vh = np.divide(rows, S[:, None], out=np.zeros_like(rows), where=S[:, None] > 0)
    U = as_matrix(outputs.inverse_root_times(P), "U")
    factors = Factors(mx.array(U), mx.array(as_vector(S, "S")), mx.array(as_matrix(Vh, "Vh")))
    factors.method = best.method
    return factors


def check_fit(shape: tuple[int, int], inputs: GramRoot, outputs: GramRoot, name: str = "D") -> None:
    """Raise ``ValueError`` unless both Grams are of the size of a matrix, which ``name`` names."""
    m, n = shape
    for side, root, size, what in (
        ("inputs", inputs, n, "columns"),
        ("outputs", outputs, m, "rows"),
    ):
        if root.size not in (None, size):
            raise ValueError(
                f"`{side}` must be of size {size}, the number of {what} of `{name}`, "
                f"got {root.size}."
            )
