"""``"factored"``: two thin matrices for a layer, run by ``plastic_model.py``; the rest asleep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plastic_core import Certificate, certify

from plastic_export.format.by_rank import RankFormat
from plastic_export.format.parts import Parts, asleep_parts, factor_parts
from plastic_export.plan.offers import Candidate, Offer


class FactoredFormat(RankFormat):
    """Factors where the weights were: smaller."""

    name = "factored"
    about = "two thin matrices each, needs --trust-remote-code"
    linears_only = True

    def parts(self, m: Candidate, offer: Offer) -> Parts:
        """Return ``P.u.weight`` and ``P.v.weight``, whose rows carry the singular values."""
        if offer.rank == 0:
            return Parts()
        return Parts(None, *factor_parts(m, offer), *asleep_parts(m, offer))

    def bias_name(self, path: str, offer: Offer) -> str:
        """Name it with the second factor."""
        return f"{path}.u.bias" if offer.rank else f"{path}.bias"

    def awake(
        self,
        weight: NDArray[np.float32],
        U: NDArray[np.float32],
        V: NDArray[np.float32],
        dtype: str,
    ) -> tuple[None, Certificate]:
        """The factors themselves."""
        return None, certify(weight, U, V)

    def own_layers(self, offer: Offer, parts: Parts) -> dict[str, Any]:
        """Return the rank."""
        return {"ranks": offer.rank} if offer.rank else {}

    def needs_model_file(self, offers: Iterable[Offer]) -> bool:
        """Tell whether a matrix is factored."""
        return any(offer.rank for offer in offers)
