"""The common base of the formats of a plan: a matrix is stored as it was priced."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from plastic_core import Backbone, Certificate, Correction, certify
from plastic_runtime import LossGrams

from plastic_export.format.errors import Errors, dense_certificate
from plastic_export.format.parts import Pieces
from plastic_export.format.protocol import Encoded, Format
from plastic_export.plan.curves import curve_of
from plastic_export.plan.gram_uses import gram_roots
from plastic_export.plan.offers import Candidate, Offer
from plastic_export.plan.storing import stored


class PlanFormat(Format):
    """A format whose offers are backbones in some bits and corrections of some rank."""

    def encode(
        self, weight: NDArray[np.float32], m: Candidate, offer: Offer, grams: LossGrams | None
    ) -> Encoded:
        """Round the backbone and factor what it leaves, as `plastic_export.plan` priced them."""
        assert grams is not None  # measured before anything is planned
        roots = gram_roots(grams)
        backbone, correction = stored(weight, offer, roots, m)
        certificate = _certificate(weight, backbone, correction)
        errors = Errors.of(weight, certificate)
        if correction is None:
            return Encoded(Pieces(backbone), errors)
        pieces = Pieces(backbone, correction.V, correction.Ut)
        if not self.dials:
            return Encoded(pieces, errors)
        curve = curve_of(weight, backbone, correction, roots, offer, certificate)
        return Encoded(pieces, errors, curve)


def _certificate(
    weight: NDArray[np.float32], backbone: Backbone | None, correction: Correction | None
) -> Certificate:
    """Return the errors of the sum of what is stored, relative to the norms of the weight."""
    product = None if correction is None else correction.operator()
    if backbone is None and product is not None:
        return certify(weight, product.U, product.Vh)
    dense = np.zeros_like(weight) if backbone is None else backbone.dequantized()
    if product is not None:
        dense = dense + product.rows(slice(None))
    return dense_certificate(weight, dense)
