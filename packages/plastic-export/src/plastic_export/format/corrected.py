"""``"corrected"``: bits and ranks, packed beside each other, run by ``plastic_model.py``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from plastic_export.checkpoint.tensors import module_path
from plastic_export.format.by_plan import PlanFormat
from plastic_export.format.parts import (
    Parts,
    asleep_parts,
    factor_parts,
    is_bare,
    packed_backbone,
)
from plastic_export.plan.choices import Choices
from plastic_export.plan.offers import Candidate, Offer


class CorrectedFormat(PlanFormat):
    """A backbone and a correction of low rank, or either of them, for every matrix."""

    name = "corrected"
    about = "bits and ranks, needs --trust-remote-code"
    choices = Choices(factor_bits=(4, 8), bare=True)

    def parts(self, m: Candidate, offer: Offer) -> Parts:
        """Return ``P.weight``, or ``P.base.weight``, ``P.v.weight``, ``P.u.weight``."""
        path, asleep = module_path(m.name), asleep_parts(m, offer)
        if offer.rank == 0:
            return Parts(packed_backbone(m, offer, path), None, None, *asleep)
        return Parts(packed_backbone(m, offer, f"{path}.base"), *factor_parts(m, offer), *asleep)

    def bias_name(self, path: str, offer: Offer) -> str:
        """Name it with the backbone, or with the second factor where that is a linear layer."""
        if offer.rank and offer.bits is not None:
            return f"{path}.base.bias"
        return f"{path}.u.bias" if is_bare(offer) else f"{path}.bias"

    def own_layers(self, offer: Offer, parts: Parts) -> dict[str, Any]:
        """Return the rank and the packing: groups along the outputs, then along the inputs."""
        if is_bare(offer):
            return {"ranks": offer.rank}
        if not offer.rank:
            return {}
        entry = {
            "rank": offer.rank,
            "bits": offer.factor_bits,
            "group_size": list(parts.factor_group_sizes),
            "backbone": offer.bits is not None,
        }
        return {"corrected": entry}

    def needs_model_file(self, offers: Iterable[Offer]) -> bool:
        """Tell whether a matrix has a correction."""
        return any(offer.rank for offer in offers)
