"""``"mixed"``: bits and groups per matrix, which everything built on mlx-lm loads."""

from __future__ import annotations

from collections.abc import Mapping

from plastic_export.checkpoint.tensors import module_path
from plastic_export.format.by_plan import PlanFormat
from plastic_export.format.parts import Parts, packed_backbone
from plastic_export.plan.choices import Choices
from plastic_export.plan.offers import Candidate, Choice, Offer


class MixedFormat(PlanFormat):
    """Backbones where the weights were."""

    name = "mixed"
    about = "bits per matrix, loads everywhere"
    choices = Choices()

    def check(self, choices: Mapping[str, Choice]) -> None:
        """Refuse corrections."""
        if ranks := {choice.rank for choice in choices.values() if choice.rank}:
            raise ValueError(f"a plan of mixed bits has no corrections, but ranks {sorted(ranks)}")

    def parts(self, m: Candidate, offer: Offer) -> Parts:
        """One backbone."""
        return Parts(packed_backbone(m, offer, module_path(m.name)))
