"""The arrays that an offer of a matrix stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from plastic_core import (
    Backbone,
    Correction,
    Operator,
    difference,
    error_feedback,
    loss_factors,
)
from plastic_core.files import MLX_DTYPES, noting

from plastic_export.plan.gram_uses import GramRoots
from plastic_export.plan.offers import Candidate, Offer


def rounded(
    weight: NDArray[np.float32], bits: int, roots: GramRoots, m: Candidate, *, group_size: int
) -> Backbone:
    """Return the weight in ``bits`` bits, as both a price and a written file mean it.

    Examples:
        >>> from plastic_export.plan import gram_roots
        >>> from plastic_runtime import GramFile
        >>> m = read_plan("plan.json").matrices[0].matrix
        >>> with GramFile("plan.grams.npz") as grams, open_checkpoint("SRC") as checkpoint:
        ...     roots = gram_roots(grams["lm_head"])
        ...     W = checkpoint.matrix("lm_head.weight")
        >>> backbone = rounded(W, 4, roots, m, group_size=32)
        >>> backbone.dequantized().shape
        (80, 64)
    """
    return error_feedback(
        weight,
        bits,
        inputs=roots.inputs,
        outputs=roots.outputs,
        group_size=group_size,
        dtype=MLX_DTYPES[m.dtype],
    )


def stored(
    weight: NDArray[np.float32], offer: Offer, roots: GramRoots, m: Candidate
) -> tuple[Backbone | None, Correction | None]:
    """The backbone and the correction of an offer of one matrix; None for what it does without."""
    with noting(f"at {m.name!r}"):
        backbone = None
        if offer.bits is not None:
            backbone = rounded(weight, offer.bits, roots, m, group_size=offer.group_size)
        if not offer.rank:
            return backbone, None
        E = weight if backbone is None else difference(weight, backbone)
        return backbone, rounded_correction(E, offer, roots, m)


def rounded_correction(
    E: Operator | NDArray[np.float32], offer: Offer, roots: GramRoots, m: Candidate
) -> Correction:
    """Return the correction of what a backbone leaves of a matrix, rounded as it is written."""
    R, C = roots
    factors = loss_factors(E, offer.rank, inputs=R, outputs=C)
    dtype = MLX_DTYPES[m.dtype]
    return Correction.rounded(factors, offer.factor_bits, inputs=R, outputs=C, dtype=dtype)
