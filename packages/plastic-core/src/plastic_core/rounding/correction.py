"""A correction in few bits, rounded so that the loss rises least, and the cost of each rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import mlx.core as mx
import numpy as np

from plastic_core.factors.factors import Factors
from plastic_core.factors.operators import LowRank, Operand
from plastic_core.factors.quantize import best_group
from plastic_core.linalg import Float32, Float64, as_matrix, to_numpy
from plastic_core.loss.gram_root import GramRoot
from plastic_core.loss.loss import Whitened, check_fit, leading_factors, whitened
from plastic_core.rounding.backbone import Backbone, error_feedback

UNPACKED = 16
"""Bits of a factor that is stored as it is, in a type of two bytes."""


@dataclass(frozen=True)
class Correction:
    """The product ``Ut.T @ V`` as it is stored; singular values are folded into both.

    Attributes:
        Ut: Output directions, one per row, shape ``(r, m)``: packed, or a plain array.
        V: Input directions, shape ``(r, n)``, packed as ``Ut`` is.

    Examples:
        >>> part = Correction(mx.array([[1.0, 0.0], [0.0, 2.0]]), mx.array([[3.0], [4.0]]))
        >>> part.rank, part.leading(1).operator().rows(slice(None)).tolist()
        (2, [[3.0], [0.0]])
    """

    Ut: Backbone | mx.array
    V: Backbone | mx.array

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.V.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of both, codes, scales and biases."""
        return self.Ut.nbytes + self.V.nbytes

    def leading(self, rank: int) -> Correction:
        """Return the first ``rank`` components."""
        return Correction(_rows(self.Ut, rank), _rows(self.V, rank))

    def operator(self) -> LowRank:
        """Return the product, for `difference`, from what is stored."""
        return LowRank(_dense(self.Ut).T, _dense(self.V))

    @classmethod
    def rounded(
        cls,
        factors: Factors,
        bits: int,
        *,
        inputs: GramRoot,
        outputs: GramRoot,
        dtype: mx.Dtype = mx.bfloat16,
    ) -> Self:
        """Round the factors that `loss_factors` found, so that the loss rises least.

        Balanced, then `error_feedback`: the input directions under the Gram R of the inputs, the
        output directions under the Gram C of the gradients. Every row is rounded by itself, so the
        first k components are the correction of rank k.

        Args:
            factors: ``U (m, r)``, ``S (r,)``, ``Vh (r, n)``.
            bits: 2, 3, 4, 5, 6 or 8, or 16: not rounded but stored in ``dtype``.
            inputs: R, damped, of size n.
            outputs: C, damped, of size m.
            dtype: The dtype of scales and biases, or of the factors.

        Raises:
            ValueError: If the factors are not finite in ``dtype``, a Gram does not fit, ``bits`` is
                not offered, or a side is not a multiple of 32 (for fewer than 16 bits).

        Note:
            ``r (m^2 + n^2)`` operations several times over, and for the first call with a Gram one
            Cholesky factorisation.
        """
        check_fit(factors.shape, inputs, outputs, "factors")
        U, S, Vh = (to_numpy(f).astype(np.float32) for f in factors)
        root = np.sqrt(S)
        return cls(
            _stored((U * root).T, bits, outputs, dtype),
            _stored(root[:, None] * Vh, bits, inputs, dtype),
        )


def factor_group(side: int) -> int | None:
    """Return how many entries share a scale along a side of a packed factor.

    Args:
        side: Outputs or inputs of the matrix.

    Returns:
        128, 64 or 32, the largest that divides the side; None where the factor cannot be packed.

    Examples:
        >>> factor_group(4096), factor_group(96), factor_group(100)
        (128, 32, None)
    """
    return best_group(side)


def priced_corrections(
    D: Operand,
    ranks: Mapping[int, int],
    *,
    inputs: GramRoot,
    outputs: GramRoot,
    dtype: mx.Dtype = mx.bfloat16,
) -> dict[int, Float64]:
    """Predict what ``D`` costs with corrections of every rank, in factors of several widths.

    The factors are found once (`loss_factors`), rounded once for each number of bits
    (`Correction.rounded`), and priced for all ranks at once as they are stored
    (`correction_costs`).

    Args:
        D: What is to be corrected, shape ``(m, n)``: a weight, or what `difference` returns.
        ranks: The most components, at least 1, by the bits of the factors.
        inputs: R, damped, of size n.
        outputs: C, damped, of size m.
        dtype: The dtype of scales and biases, or of factors of 16 bits.

    Returns:
        For each number of bits nats per token, shape ``(rank + 1,)``: entry k is what is left to
        pay with the first k components.

    Raises:
        TypeError: If ``D`` does not hold floating-point numbers.
        ValueError: If ``D`` is not a finite matrix, a Gram does not fit it, or `Correction.rounded`
            refuses.

    Examples:
        >>> import numpy as np
        >>> D, one = np.diag(np.float32([3, 2, 1])), GramRoot.of(np.eye(3), damping=0.0)
        >>> costs = priced_corrections(D, {16: 2}, inputs=one, outputs=one)
        >>> costs[16].round(2).tolist()  # (9 + 4 + 1) / 2 without a correction
        [7.0, 2.5, 0.5]
    """
    if not ranks:
        return {}
    white = whitened(D, inputs, outputs)
    factors = leading_factors(white, max(ranks.values()), outputs)
    costs = {}
    for bits, rank in ranks.items():
        part = Correction.rounded(
            factors.leading(rank), bits, inputs=inputs, outputs=outputs, dtype=dtype
        )
        costs[bits] = _costs(white, part, inputs, outputs)
    return costs


def correction_costs(
    D: Operand, part: Correction, *, inputs: GramRoot, outputs: GramRoot
) -> Float64:
    r"""Return `predicted_cost` of ``D`` less the first k components, for every k at once.

    With :math:`M = L_C^T D L_R`, :math:`a_i = L_C^T u_i` and :math:`b_i = v_i L_R`,

    .. math::

        \|M - \sum_{i \le k} a_i b_i\|_F^2 = \|M\|_F^2 - 2 \sum_{i \le k} a_i^T M b_i^T
        + \sum_{i, j \le k} (a_i^T a_j)(b_i b_j^T).

    Args:
        D: What is to be approximated, shape ``(m, n)``: a weight, or what `difference` returns.
        part: The components as they are stored.
        inputs: R, damped.
        outputs: C, damped.

    Returns:
        Shape ``(r + 1,)``, nats per token, exact to about 1e-7 of its first value.

    Examples:
        >>> import numpy as np
        >>> D, one = np.diag(np.float32([3, 2, 1])), GramRoot(None)
        >>> part = Correction(mx.array([[3.0, 0.0, 0.0]]), mx.array([[1.0, 0.0, 0.0]]))
        >>> correction_costs(D, part, inputs=one, outputs=one).round(2).tolist()
        [7.0, 2.5]
    """
    return _costs(whitened(D, inputs, outputs), part, inputs, outputs)


def _costs(white: Whitened, part: Correction, inputs: GramRoot, outputs: GramRoot) -> Float64:
    M, scale = white.M, white.norm or 1.0
    U, V = _dense(part.Ut).T, _dense(part.V)
    A, B = outputs.root_times(U) / scale, inputs.times_root(V)  # of M
    crossing = np.einsum("mi,mi->i", A, M.astype(np.float64) @ B.T)
    pairs = (A.T @ A) * (B @ B.T)
    squares = np.cumsum(2 * np.tril(pairs).sum(axis=1) - np.diagonal(pairs))
    whole = white.norm / scale  # the norm of M: 1, or 0 where there is nothing to correct
    energies = np.concatenate([[whole], whole - 2 * np.cumsum(crossing) + squares])
    costs: Float64 = scale**2 / 2 * np.maximum(energies, 0.0)
    return costs


def _stored(rows: Float32, bits: int, gram: GramRoot, dtype: mx.Dtype) -> Backbone | mx.array:
    if bits == UNPACKED:
        array = mx.array(rows).astype(dtype, stream=mx.cpu)
        as_matrix(array, "factors")  # finite in `dtype`
        return array
    group_size = factor_group(rows.shape[1])
    if group_size is None:
        raise ValueError(
            f"`factors` must have sides in multiples of 32 for {bits} bits, got a side of "
            f"{rows.shape[1]}. Choose 16 bits."
        )
    return error_feedback(rows, bits, inputs=gram, group_size=group_size, dtype=dtype)


def _dense(part: Backbone | mx.array) -> Float32:
    return part.dequantized() if isinstance(part, Backbone) else as_matrix(part, "factor")


def _rows(part: Backbone | mx.array, count: int) -> Backbone | mx.array:
    if not isinstance(part, Backbone):
        return part[:count]
    return replace(
        part,
        weight=part.weight[:count],
        scales=part.scales[:count],
        biases=part.biases[:count],
        shape=(count, part.shape[1]),
    )
